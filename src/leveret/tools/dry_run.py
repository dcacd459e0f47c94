"""DryRun: calls that are only described, as the Android intents that a phone would be sent where one is known."""

from __future__ import annotations

import shlex

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError
from leveret.tools.android import plan
from leveret.tools.sandbox import Outcome


class DryRun:
    """Runs nothing."""

    def is_act(self, call: ToolCall) -> bool:
        """Never: nothing is done."""
        return False

    def run(self, call: ToolCall) -> Outcome:
        """What would be done, or why nothing can be said."""
        try:
            intent = plan(call)
            if intent.action is None:
                return Outcome(text=f"dry run: {intent.note}")
            return Outcome(text=f"dry run, nothing was sent: {shlex.join(intent.command())}")
        except ToolError as error:
            return Outcome(text=f"dry run, nothing was done: {error.message}")
