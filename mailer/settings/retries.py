"""The settings of retries: waits, tries, and the rest of relays."""

from mailer.policy import RetryPolicy
from mailer.settings.relay import RelaySettings, Seconds, key

_RETRY = RetryPolicy()  # the defaults of its fields


class RetrySettings(RelaySettings):
    """The settings of an app that are about retries."""

    retry_first: Seconds = key(
        "MAILER_RETRY_FIRST",
        "Seconds before the first retry of a deferred mail.",
        _RETRY.first,
    )
    retry_factor: float = key(
        "MAILER_RETRY_FACTOR",
        "Factor by which each wait is longer than the previous one.",
        _RETRY.factor,
        ge=1,
        le=100,
    )
    retry_longest: Seconds = key(
        "MAILER_RETRY_LONGEST", "Maximum of seconds between two tries.", _RETRY.longest
    )
    retry_jitter: float = key(
        "MAILER_RETRY_JITTER",
        "Random share by which a wait is longer or shorter.",
        _RETRY.jitter,
        ge=0,
        le=0.9,
    )
    retry_attempts: int = key(
        "MAILER_RETRY_ATTEMPTS",
        "Number of tries after which a deferred mail fails.",
        _RETRY.max_attempts,
        ge=1,
        le=1000,
    )
    retry_age: Seconds = key(
        "MAILER_RETRY_AGE",
        "Age in seconds at which a mail fails that was deferred, or whose relays were unreachable.",
        _RETRY.max_age,
    )
    relay_rest: Seconds = key(
        "MAILER_RELAY_REST",
        "Seconds before an unusable relay is tried again; longer each time.",
        _RETRY.relay_rest,
    )
    relay_rest_longest: Seconds = key(
        "MAILER_RELAY_REST_LONGEST",
        "Maximum of seconds between two tries of an unusable relay.",
        _RETRY.relay_rest_longest,
    )
    doubt_resend_after: Seconds = key(
        "MAILER_DOUBT_RESEND_AFTER",
        "Seconds before a doubtful mail is sent once more.",
        _RETRY.doubt_resend_after,
    )

    @property
    def retry(self) -> RetryPolicy:
        return RetryPolicy(
            first=self.retry_first,
            factor=self.retry_factor,
            longest=self.retry_longest,
            jitter=self.retry_jitter,
            max_attempts=self.retry_attempts,
            max_age=self.retry_age,
            doubt_resend_after=self.doubt_resend_after,
            relay_rest=self.relay_rest,
            relay_rest_longest=self.relay_rest_longest,
        )
