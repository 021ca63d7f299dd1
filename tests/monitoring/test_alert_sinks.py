"""Sinks: a file that several processes write, mail servers with and without encryption, Alertmanager's API, Prometheus' file."""

import base64
import json
import resource
import signal
import socketserver
import ssl
import subprocess
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from multiprocessing import get_context
from threading import Thread

import pytest
from alerting import health, need_tools, web_server
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client.parser import text_string_to_metric_families

from mlcycle.monitoring.alert_rules import AlertSettings, MailSettings, make_alarm
from mlcycle.monitoring.alert_sinks import publish_alert_states, render_health_metrics, send_by_mail, send_to_file
from mlcycle.monitoring.alert_state import Notification, advance_alert
from mlcycle.outcomes import Score

NOW = datetime(2024, 1, 31, 12)
PASSWORD = "T0p-Secret"


def notification(subject: str = "price", summary: str = "The median moved.") -> Notification:
    "A notification about drift."
    values = {"kind": "firing", "repeated": False, "time": NOW, "model": "flights", "rule": "drift", "severity": "warning"}
    return Notification(**values, subject=subject, summary=summary, columns=[subject], since="", alerts=["1a"], runbook="Look.")


def alert(rule: str = "drift", subject: str = "price", now: datetime = NOW, **fields):
    "An alert that fires."
    return advance_alert(None, make_alarm(rule, "It moved.", subject, **fields), "flights", now, settings=AlertSettings())[0]


def write_many(path: str, number: int) -> None:
    "Append 50 notifications, with texts of a length that no single write of a pipe would keep whole."
    for n in range(50):
        assert send_to_file(AlertSettings(file=path), notification(f"{number}-{n}", "x" * 9000)) == ""


def test_lines_of_several_processes_stay_whole(tmp_path):
    path = tmp_path / "folder" / "alerts.jsonl"
    writers = [get_context("fork").Process(target=write_many, args=(str(path), number)) for number in range(3)]
    [writer.start() for writer in writers]
    [writer.join() for writer in writers]
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    subjects = [json.loads(line)["subject"] for line in path.read_text().splitlines()]
    assert len(set(subjects)) == 150


def write_with_limit(path: str, size: int) -> None:
    "Append a notification where a file cannot grow beyond a size."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    assert "cannot be written" in send_to_file(AlertSettings(file=path), notification())


def test_a_full_disk_leaves_no_half_line(tmp_path):
    path = tmp_path / "alerts.jsonl"
    send_to_file(AlertSettings(file=str(path)), notification())
    before = path.read_bytes()
    for room in (0, 100):
        writer = get_context("fork").Process(target=write_with_limit, args=(str(path), len(before) + room))
        writer.start()
        writer.join()
        assert writer.exitcode == 0
        assert path.read_bytes() == before
    assert "No space left" in send_to_file(AlertSettings(file="/dev/full"), notification())
    assert "cannot be written" in send_to_file(AlertSettings(file=str(tmp_path)), notification())


# E-mail


class Mailbox(socketserver.StreamRequestHandler):
    "A small mail server: it offers STARTTLS where it has a certificate, and accepts one password."

    def say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())

    def handle(self):
        server, secure = self.server, isinstance(self.request, ssl.SSLSocket)
        self.say("220 mail")
        while line := self.rfile.readline().decode().strip():
            word = line.split()[0].upper()
            if word == "EHLO":
                self.say("250-mail", *(["250-STARTTLS"] if server.context and not secure else []), "250 AUTH PLAIN")
            elif word == "STARTTLS":
                self.say("220 go on")
                self.request = server.context.wrap_socket(self.request, server_side=True)
                self.setup()
                secure = True
            elif word == "AUTH":
                login = base64.b64decode(line.split()[2]).decode().split("\0")
                server.logins.append((secure, *login[1:]))
                self.say("235 fine" if login[2] == PASSWORD else f"535 {login[2]} is wrong")
            elif word == "DATA":
                self.say("354 go on")
                server.mails.append((secure, b"".join(iter(self.rfile.readline, b".\r\n")).decode()))
                self.say("250 taken")
            else:
                self.say("221 bye" if word == "QUIT" else "250 fine")


class MailServer(socketserver.ThreadingTCPServer):
    "A mail server on loopback."

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, context: ssl.SSLContext | None, implicit: bool = False):
        self.context, self.implicit, self.mails, self.logins = context, implicit, [], []
        super().__init__(("127.0.0.1", 0), Mailbox)

    def get_request(self):
        request, address = super().get_request()
        return (self.context.wrap_socket(request, server_side=True) if self.implicit else request), address

    def handle_error(self, request, client_address):
        "A client that does not trust the certificate hangs up."


@contextmanager
def mail_server(context: ssl.SSLContext | None, implicit: bool = False):
    "A mail server that runs."
    with MailServer(context, implicit) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    "A certificate of 127.0.0.1: its file, and a context of a server that has it."
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    start = datetime.now(UTC) - timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), 7, start, start + timedelta(days=9))
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), True).sign(key, hashes.SHA256())
    file = tmp_path_factory.mktemp("certificate") / "both.pem"
    encoding, no = serialization.Encoding.PEM, serialization.NoEncryption()
    file.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no) + made.public_bytes(encoding))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return file, context


def mail_settings(port: int, scheme: str = "smtp", **fields) -> AlertSettings:
    "Settings that send to a mail server on loopback."
    mail = {"recipients": ["team@example.org"], "sender": "ml@example.org", "server": f"{scheme}://127.0.0.1:{port}"}
    return AlertSettings(mail=MailSettings(**mail | fields))


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_mail_is_encrypted_and_the_password_is_from_the_environment(certificate, monkeypatch, scheme):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("MAIL_PASSWORD", PASSWORD)
    monkeypatch.setenv("MAIL_USER", "ann")
    with mail_server(certificate[1], scheme == "smtps") as server:
        settings = mail_settings(server.server_address[1], scheme, user="$MAIL_USER", password="$MAIL_PASSWORD")
        assert send_by_mail(settings, notification("price\nBcc: all@example.org")) == ""
        monkeypatch.setenv("MAIL_PASSWORD", "not it")
        problem = send_by_mail(settings, notification())
    (mail,) = server.mails
    assert mail[0], "the message was encrypted"
    assert server.logins[0] == (True, "ann", PASSWORD)
    assert "Subject: [WARNING] flights: drift of price Bcc: all@example.org\r\n" in mail[1]
    assert "The median moved." in mail[1]
    assert problem.endswith("SMTPAuthenticationError 535.")
    assert "not it" not in problem


def test_nothing_is_sent_to_a_server_that_is_not_trusted_or_not_encrypted(certificate, monkeypatch):
    monkeypatch.setenv("MAIL_PASSWORD", PASSWORD)
    with mail_server(certificate[1]) as server:  # Its certificate is signed by nobody
        problem = send_by_mail(
            mail_settings(server.server_address[1], user="$MAIL_PASSWORD", password="$MAIL_PASSWORD"), notification()
        )
    assert "SSLCertVerificationError" in problem
    assert server.mails == server.logins == []
    with mail_server(None) as server:
        assert "SMTPNotSupportedError" in send_by_mail(mail_settings(server.server_address[1]), notification())
        assert server.mails == []
        assert send_by_mail(mail_settings(server.server_address[1], tls=False), notification()) == ""
    assert [secure for secure, _ in server.mails] == [False]
    assert "which is not set" in send_by_mail(mail_settings(1, user="$NO_SUCH_USER"), notification())
    assert "ConnectionRefusedError" in send_by_mail(mail_settings(server.server_address[1]), notification())


# States


def test_the_file_for_prometheus_is_what_promtool_expects(tmp_path):
    taken = alert("latency", "").model_copy(update={"state": "acknowledged", "acknowledged_at": NOW})
    alerts = [alert(), taken, alert("missing column", 'a "quoted"\nname\\')]
    judged = health(rows=1000, n_labelled=250, score=Score(metric="roc_auc", value=0.81, low=0.8, high=0.82))
    text = render_health_metrics(judged, alerts, NOW)
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {sample.name: sample.value for sample in samples}
    assert found["mlcycle_monitoring_timestamp_seconds"] == NOW.replace(tzinfo=UTC).timestamp()
    assert (found["mlcycle_monitoring_labelled_ratio"], found["mlcycle_monitoring_score"]) == (0.25, 0.81)
    active = {
        tuple(sample.labels[key] for key in ("rule", "severity", "state", "subject"))
        for sample in samples
        if "active" in sample.name
    }
    assert ("missing column", "critical", "firing", 'a "quoted"\nname\\') in active
    assert ("latency", "warning", "acknowledged", "") in active
    assert len(active) == 3
    settings = AlertSettings(prometheus=str(tmp_path / "collector"))
    assert publish_alert_states(judged, alerts, settings, NOW) == []
    assert [path.name for path in (tmp_path / "collector").iterdir()] == ["mlcycle_flights.prom"]
    need_tools("promtool")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_alertmanager_gets_open_and_resolved_alerts(tmp_path, monkeypatch):
    monkeypatch.setenv("AM_PASSWORD", PASSWORD)
    gone = advance_alert(alert("latency", ""), None, "flights", NOW + timedelta(hours=1), settings=AlertSettings())[0]
    with web_server(200) as (port, received):
        settings = AlertSettings(alertmanager=f"http://ann:$AM_PASSWORD@127.0.0.1:{port}/")
        assert publish_alert_states(health(), [alert(), gone], settings, NOW + timedelta(hours=1)) == []
        assert publish_alert_states(health(), [], settings, NOW) == []
    ((path, (first, second)),) = received
    assert path == "/api/v2/alerts"
    assert (first["startsAt"], first["endsAt"]) == ("2024-01-31T12:00:00Z", "2024-02-02T13:00:00Z")
    assert second["endsAt"] == "2024-01-31T13:00:00Z"
    assert "subject" not in second["labels"]
    (problem,) = publish_alert_states(health(), [alert()], settings, NOW)
    assert problem.startswith("Alertmanager at http://127.0.0.1 cannot be reached")
    assert PASSWORD not in problem


def test_for_alertmanager_an_acknowledged_alert_has_ended():
    "It would go on calling people otherwise; after two days the alert is not sent any more."
    taken = alert().model_copy(update={"state": "acknowledged", "acknowledged_at": NOW + timedelta(hours=3)})
    with web_server(200) as (port, received):
        settings = AlertSettings(alertmanager=f"http://127.0.0.1:{port}")
        for hours in (4, 60):
            assert publish_alert_states(health(), [taken], settings, NOW + timedelta(hours=hours)) == []
    ((_, (sent,)),) = received
    assert sent["endsAt"] == "2024-01-31T15:00:00Z"


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path):
    (tmp_path / "file").write_text("")
    (problem,) = publish_alert_states(health(), [], AlertSettings(prometheus=str(tmp_path / "file")), NOW)
    assert "for Prometheus cannot be written" in problem
