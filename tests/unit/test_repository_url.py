from __future__ import annotations

import ipaddress

import pytest

from orchestrator.core.errors import Refused
from orchestrator.core.repository_url import check, is_public, redact


@pytest.mark.parametrize(
    ("url", "canonical", "kind", "host"),
    [
        ("https://github.com/a/b.git", "https://github.com/a/b.git", "https", "github.com"),
        ("https://GitHub.com:443/a/b/", "https://github.com/a/b", "https", "github.com"),
        ("https://git.example.org:8443/a", "https://git.example.org:8443/a", "https", "git.example.org"),
        ("ssh://git@example.org/a/b", "ssh://git@example.org/a/b", "ssh", "example.org"),
        ("git@example.org:a/b.git", "ssh://git@example.org/~/a/b.git", "ssh", "example.org"),
        ("example.org:/srv/a.git", "ssh://example.org/srv/a.git", "ssh", "example.org"),
        ("/srv//git/./a b/", "/srv/git/a b", "local", ""),
        ("https://[2606:4700::1111]/a", "https://[2606:4700::1111]/a", "https", "2606:4700::1111"),
        ("https://8.8.8.8/a", "https://8.8.8.8/a", "https", "8.8.8.8"),
    ],
)
def test_an_allowed_address_has_one_canonical_spelling(
    url: str, canonical: str, kind: str, host: str
) -> None:
    checked = check(url, allow_local=True)
    assert (checked.canonical, checked.kind, checked.host) == (canonical, kind, host)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "-oProxyCommand=id",
        "--upload-pack=id",
        "https://user:secret@example.org/a",
        "https://token@example.org/a",
        "https://a@b@example.org/x",
        "ssh://git:secret@example.org/a",
        "ssh://-oProxyCommand=id/a",
        "ssh://git@-oProxyCommand=id/a",
        "-x@example.org:a",
        "git@-oProxyCommand=id:a",
        "git@example.org:-a",
        "ssh://example.org/'a",
        "http://example.org/a",
        "git://example.org/a",
        "ftp://example.org/a",
        "file:///etc",
        "file://host/etc",
        "ext::sh -c id",
        "ext::sh",
        "fd::17",
        "transport::https://example.org/a",
        "https://example.org",
        "https://example.org/",
        "https://example.org/a?x=1",
        "https://example.org/a#x",
        "https://example.org/a\nb",
        "https://example.org/a%0ab",
        "https://exa mple.org/a",
        "https://example.org\\@127.0.0.1/a",
        "https://%31%32%37.0.0.1/a",
        "https://\uff11\uff12\uff17.0.0.1/a",
        "https://example.org:port/a",
        "https://example.org:99999/a",
        "https://[::1/a",
        "https://[fe80::1%25eth0]/a",
        "../relative",
        "relative/path",
        "./x",
        "~/x",
        "/srv/../etc",
        "/srv/\x00a",
        "https://example.org/" + "a" * 2048,
    ],
)
def test_every_other_address_is_refused_with_its_reason(url: str) -> None:
    with pytest.raises(Refused) as caught:
        check(url, allow_local=True, allow_private=True)
    assert caught.value.code == "repository-forbidden"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104
        "224.0.0.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fd00::1]",
        "[fec0::1]",
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "metadata.google.internal",
    ],
)
@pytest.mark.parametrize("shape", ["https://{}/a", "ssh://git@{}/a", "git@{}:a"])
def test_a_private_address_is_refused_in_every_spelling_unless_allowed(host: str, shape: str) -> None:
    url = shape.format(host)
    with pytest.raises(Refused):
        check(url, allow_local=True)
    assert check(url, allow_local=True, allow_private=True).kind in ("https", "ssh")


def test_local_paths_need_the_policys_leave() -> None:
    with pytest.raises(Refused):
        check("/srv/a", allow_local=False)


def test_what_is_shown_holds_no_account_and_no_query() -> None:
    assert check("git@example.org:a", allow_local=False).redacted == "ssh://example.org/~/a"
    text = "fatal: unable to access 'https://u:p@example.org/a?token=x': refused"
    assert redact(text) == "fatal: unable to access 'https://example.org/a': refused"


def test_an_address_wrapped_in_another_is_judged_by_what_it_wraps() -> None:
    assert is_public(ipaddress.ip_address("64:ff9b::808:808"))
    assert not is_public(ipaddress.ip_address("64:ff9b::a00:1"))
    assert not is_public(ipaddress.ip_address("2002:a00:1::"))
    for wrapped in ("::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b:1::7f00:1"):
        assert not is_public(ipaddress.ip_address(wrapped))
