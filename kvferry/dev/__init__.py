"""What development, tests and the demo need beside kvferry itself."""
