"""Insert the calls of `muse_adapter.clip4clip` into a user's CLIP4Clip or X-CLIP checkout.

No line of the checkout is changed or removed: each insertion point is a statement in a named class
or function, found in the syntax tree; a one-line block between marker comments is inserted before
or after it.
"""

from muse_adapter.patching.checkout import replace_files
from muse_adapter.patching.errors import PatchError
from muse_adapter.patching.hosts import HOSTS, Host
from muse_adapter.patching.plan import Plan, make_plan, make_reverse_plan

__all__ = [
    "HOSTS",
    "Host",
    "PatchError",
    "Plan",
    "make_plan",
    "make_reverse_plan",
    "replace_files",
]
