"""The names of users in logs, traces and captures, as the settings wish them."""

from mfalcon.pseudonym import OURS, user_tag

__all__ = ["name_users", "user_tag"]


def name_users(log_user_ids: str, key: bytes | None) -> None:
    """Set how this process names users from now on. log_user_ids: "hashed" or "plain". key: what the hash is keyed
    with; None for a random one.
    """
    OURS.use(key, is_plain=log_user_ids == "plain")
