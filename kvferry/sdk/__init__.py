"""Clients: of the cluster for routers, of one worker for its engine."""
