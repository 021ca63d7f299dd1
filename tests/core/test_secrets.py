"""Secrets in addresses and messages: none is shown, and what is no secret stays readable."""

import pytest

from mlcycle.core.secrets import mask_secrets

KINDS = {
    "a password": ("postgresql://me:hush@db/orders", "postgresql://me:…@db/orders"),
    "a password without a user": ("redis://:hush@db:6379/0", "redis://:…@db:6379/0"),
    "a password with a slash and an at sign": ("postgresql://me:hu/sh@hush@db/orders", "postgresql://me:…@db/orders"),
    "a token as the user": ("https://hush@example.org/orders", "https://…@example.org/orders"),
    "a token": ("https://example.org/o?token=hush&n=1", "https://example.org/o?token=…&n=1"),
    "an API key": ("https://example.org/o?n=1&api_key=hush#size=5", "https://example.org/o?n=1&api_key=…#size=5"),
    "a password as a parameter": ("mysql://db/o?password=hush&charset=utf8", "mysql://db/o?password=…&charset=utf8"),
    "an option": ("https://example.org/o#token=hush&paging=page", "https://example.org/o#token=…&paging=page"),
    "a signature": ("https://s3.example.org/o?X-Amz-Signature=hush", "https://s3.example.org/o?X-Amz-Signature=…"),
    "in capitals": ("https://example.org/o?ACCESS_TOKEN=hush", "https://example.org/o?ACCESS_TOKEN=…"),
    "percent-encoded": (
        "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dhush%3BEncrypt%3Dyes",
        "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D…%3BEncrypt%3Dyes",
    ),
    "an address in an address": (
        "https://example.org/?next=https://me:hush@other.org",
        "https://example.org/?next=https://me:…@other.org",
    ),
}


@pytest.mark.parametrize(("address", "shown"), KINDS.values(), ids=KINDS)
def test_a_secret_in_an_address(address, shown):
    assert mask_secrets(address) == shown
    secret = "hu/sh@hush" if "hu/sh" in address else "hush"
    said = mask_secrets(f"no way in to '{address}': {secret} was refused", address)
    assert "hush" not in said
    assert said.endswith("… was refused")
    assert shown in said
    assert said.startswith("no way in to '")


@pytest.mark.parametrize(
    "address",
    [
        "orders.csv#separator=;&decimal=,",
        "sqlite:///shop.db#orders",
        "s3://bucket/orders@3",
        "http://host:8080/path@3",
        "https://example.org/o?page=2&size=10#records=data.items",
        "postgresql://me:$DB_PASSWORD@db/orders",
        "postgresql://me:${DB_PASSWORD}@db/orders",
        "https://example.org/o?token=$API_TOKEN",
        "$DATABASE_URL#orders",
        "flights",
    ],
)
def test_what_is_no_secret_stays(address):
    assert mask_secrets(address) == address
    assert mask_secrets(address, address) == address


@pytest.mark.parametrize(
    ("address", "variables", "message", "shown"),
    [
        (
            "postgresql://me:$DB_PASSWORD@db/orders",
            {"DB_PASSWORD": "hush/hush@1"},
            "no way in to postgresql://me:hush/hush@1@db/orders",
            "no way in to postgresql://me:$DB_PASSWORD@db/orders",
        ),
        ("${DB_URL}#orders", {"DB_URL": "postgresql://me:hush@db"}, "hush is wrong", "… is wrong"),
        ("https://x.org/o?token=$API_TOKEN", {"API_TOKEN": "hush"}, "GET /o?token=hush", "GET /o?token=$API_TOKEN"),
        ("$ONE:$TWO", {"ONE": "hush", "TWO": "hushhush"}, "hushhush and hush", "$TWO and $ONE"),
        ("postgresql://me:hu%40sh@db", {}, "password hu@sh is wrong", "password … is wrong"),
    ],
)
def test_values_of_variables_are_masked_where_the_address_names_them(address, variables, message, shown, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert mask_secrets(message, address) == shown


def test_a_short_password_does_not_garble_a_message():
    assert mask_secrets("permission denied for me:p@db", "mysql://me:p@db") == "permission denied for me:p@db"
    assert mask_secrets("no way in to mysql://me:p@db", "mysql://me:p@db") == "no way in to mysql://me:…@db"


def test_more_secrets_and_paths_can_be_hidden():
    assert mask_secrets("p is wrong", secrets=["p", ""]) == "… is wrong"
    said = mask_secrets("no route to https://me:hush@hooks.example.org/hush?a=b now", hide_paths=True)
    assert said == "no route to https://hooks.example.org/… now"
