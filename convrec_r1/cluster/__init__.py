"""Ray: start it on this machine or join it, see what it has, and train under it. Ray is imported only under cluster=ray."""
