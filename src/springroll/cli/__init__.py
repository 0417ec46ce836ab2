"""The command `springroll`, one file per subcommand; nothing here imports JAX until it runs."""
