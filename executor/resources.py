"""Stand-in until the options come."""

from executor.core.needs import Needs


def request_texts(needs: Needs) -> list[tuple[str, str]]:
    """Names and texts."""
    return [(need.name, f"{(need.amount or 0) / 10000:g} {need.policy}") for need in needs.needs]
