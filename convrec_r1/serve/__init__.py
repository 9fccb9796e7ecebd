"""Use a trained policy: recommendations from Python and the command line, one at a time or as a service."""

from typing import TYPE_CHECKING

from convrec_r1.base.lazy import lazy

if TYPE_CHECKING:
    from convrec_r1.serve.recommender import Recommender
    from convrec_r1.serve.request import Recommendation, Request
    from convrec_r1.serve.session import Busy, Closed, Reply, Session

__all__ = ["Busy", "Closed", "Recommendation", "Recommender", "Reply", "Request", "Session"]

__getattr__ = lazy(
    __name__,
    recommender=["Recommender"],
    request=["Recommendation", "Request"],
    session=["Busy", "Closed", "Reply", "Session"],
)
