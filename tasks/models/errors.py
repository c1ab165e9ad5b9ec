"""Messages of other libraries inside ours."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters, to be quoted in ours."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
