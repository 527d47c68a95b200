"""The operations of ATen in terms of the few that have rules."""
