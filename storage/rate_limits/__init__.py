"""Who may call a model, and when."""
