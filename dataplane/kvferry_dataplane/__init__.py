"""The data-plane process: owns a pool of KV memory, lets peers read it, and reads theirs."""
