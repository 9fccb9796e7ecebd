"""hydra/launcher=ray: Hydra takes launchers from this namespace only."""

from convrec_r1.studies import launcher


class RayLauncher(launcher.RayLauncher):
    """See convrec_r1/studies/launcher.py."""
