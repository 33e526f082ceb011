"""Program: command lines that end in a program with options of its own, as in `run TARGET IMAGE sh -c ls`."""

import click


class ProgramCommand(click.Command):
    """A command whose first two words are its own; from the third on all belongs to the program, `--` or not."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line."""
        place = self._program(ctx, args)
        if place is not None and "--" not in args[: place + 1]:
            args = [*args[:place], "--", *args[place:]]
        return super().parse_args(ctx, args)

    def _program(self, ctx: click.Context, args: list[str]) -> int | None:
        """Return where the third word stands that is neither an option nor its value."""
        takes = {
            name: not (param.is_flag or param.count)
            for param in self.get_params(ctx)
            if isinstance(param, click.Option)
            for name in (*param.opts, *param.secondary_opts)
        }
        words, skip = 0, False
        for place, arg in enumerate(args):
            if skip:
                skip = False
            elif arg == "--":
                return None
            elif arg.startswith("--"):
                skip = "=" not in arg and takes.get(arg, False)
            elif arg.startswith("-") and len(arg) > 1:
                # Flags may stand together, the last of them may have its value behind it or next to it.
                first = next((at for at, letter in enumerate(arg[1:], 1) if takes.get(f"-{letter}", False)), None)
                skip = first == len(arg) - 1
            else:
                words += 1
                if words == 3:
                    return place
        return None
