"""How the processes of a deployment know each other: a shared secret, and TLS where it is configured."""
