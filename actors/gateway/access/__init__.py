"""Who may call the gateway: API keys, what each may do, and how much."""
