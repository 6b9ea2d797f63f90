"""A command that refuses a flag that is given twice: click takes the last in silence, whichever was meant."""

from typing import Any

import typer
from typer.core import TyperCommand


class OnceCommand(TyperCommand):
    """Every flag once, but for those whose values make a list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse. Raises BadParameter. The context's class is not public in every version of typer."""
        if not ctx.resilient_parsing:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for flag in given:
                times = sum(other is flag for other in given)
                if times > 1 and flag.nargs == 1 and not flag.multiple:
                    raise typer.BadParameter(
                        f"it is given {times} times, must be once", ctx=ctx, param_hint=flag.opts[0]
                    )
        return super().parse_args(ctx, args)
