"""Inserts the lines that call `muse_adapter.clip4clip` into a user's CLIP4Clip or X-CLIP checkout.

Nothing of the checkout is changed or removed: a place is a class, a function and one call in it,
found by the syntax tree, and our one-line blocks go before or after it, between marker comments.
"""

from muse_adapter.patching.checkout import write_all
from muse_adapter.patching.errors import PatchError
from muse_adapter.patching.hosts import HOSTS, Host
from muse_adapter.patching.plan import Plan, make_plan, unpatched

__all__ = ["HOSTS", "Host", "PatchError", "Plan", "make_plan", "unpatched", "write_all"]
