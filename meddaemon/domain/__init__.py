"""Values and state tables that every stage speaks: standard library and numpy only, no I/O, no clock."""
