"""The search spaces that come with fastcifar, as TOML, for `fastcifar sweep`."""
