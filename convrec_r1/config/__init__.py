"""The config of a run: `schema` types every key of conf/, `checks` finds problems, `files` finds conf/."""
