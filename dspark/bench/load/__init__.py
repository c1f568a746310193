"""The service under load: who is measured, how, and what is read off it."""
