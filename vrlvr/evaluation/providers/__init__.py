"""The hosted video systems of the paper's tables, each spoken to by its documented HTTP API."""

from vrlvr.evaluation.providers.kling import Kling
from vrlvr.evaluation.providers.sora import Sora
from vrlvr.evaluation.providers.veo import Veo

PROVIDERS: dict[str, type[Sora] | type[Veo] | type[Kling]] = {"sora2": Sora, "veo3.1": Veo, "kling3": Kling}
