"""How the model's server continues a text, as known before a call: from the setting, its address or a measurement.

Imports no client of a model, so that a gateway can use it too.
"""

from __future__ import annotations

from chatjobs.contracts import AssistantMessage, ChatRequest
from chatjobs.errors import InvalidRequest, Problem
from domain.continuing import AS_MISTRAL, USUAL, VERSION, Drops, Practice, Way, is_mistral, server_name
from domain.settings import Settings
from storage.continuations import ContinuationStore
from storage.engine.database import Database

PREFIX_REFUSED = (
    "the server of this model does not continue an assistant's message, so that it would answer something else; leave"
    " the message out and ask for the beginning in the user's message, or choose a model that continues"
)


def assumed(settings: Settings) -> Practice | None:
    """The server's practice by the settings; None if it has to be measured."""
    if settings.chatjobs_continuation != "auto":
        return USUAL[Way(settings.chatjobs_continuation)]
    return AS_MISTRAL if is_mistral(settings.mistral_server_url) else None


def store(settings: Settings, database: Database) -> ContinuationStore:
    return ContinuationStore(database, server_name(settings.mistral_server_url), VERSION)


async def remembered(continuations: ContinuationStore) -> dict[str, Practice]:
    """The measured practices by model. Raises StorageError."""
    found = await continuations.measured()
    return {one.model: Practice(Way(one.way), Drops(one.drops), one.echoes, one.formats) for one in found}


class PrefixRule:
    """Refuses a caller's own prefix if the server is known not to continue it.

    A model that was not measured yet passes: the attempt checks again before its call (activities/completer.py).
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._assumed = assumed(settings)
        self._store = store(settings, database)

    async def check(self, request: ChatRequest) -> None:
        """Raises InvalidRequest, StorageUnavailable."""
        if not isinstance(request.messages[-1], AssistantMessage):
            return
        practice = self._assumed or (await remembered(self._store)).get(request.model)
        if practice is not None and practice.way is Way.NONE:
            raise InvalidRequest([Problem(f"/messages/{len(request.messages) - 1}/prefix", PREFIX_REFUSED)])
