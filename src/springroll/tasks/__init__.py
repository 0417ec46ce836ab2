"""What is scored: a task turns a model and some data into a fitness, higher is better."""
