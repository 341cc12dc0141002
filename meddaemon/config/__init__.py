"""Settings, rules and model contracts: read from TOML and the environment, checked once, all problems at once."""
