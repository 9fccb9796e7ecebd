"""What a run may be told: `schema` types every key of conf/, `checks` looks across fields, `files` finds conf/."""
