"""The recipes that come with fastcifar, as TOML."""
