"""What stands beside the gateway: plain proxies as the limit of a relay, and other gateways.

None is a dependency of the project. Each is found on the PATH, in the folder that ``--peers`` names (one
virtual environment a peer, ``DIR/<name>/bin``), or skipped with the reason. To fetch them::

    apt-get install nginx haproxy
    for p in smg vllm-router sglang-router "litellm[proxy]"; do
      python3 -m venv peers/${p%%[*} && peers/${p%%[*}/bin/pip install "$p"; done
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wire.programs import free_port

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Peer:
    """``command`` makes argv from (program, folder for files, its port, the engine's port)."""

    name: str
    program: str
    command: Callable[[str, Path, int, int], list[str]]
    health: str = "/health"
    start_s: float = 60.0

    def find(self, peers: Path | None) -> str | None:
        """The program's path, or ``None``."""
        if peers is not None and (peers / self.name / "bin" / self.program).exists():
            return str(peers / self.name / "bin" / self.program)
        return shutil.which(self.program)


def _nginx(program: str, folder: Path, port: int, engine: int) -> list[str]:
    conf = folder / "nginx.conf"
    conf.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 100000000;
client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
upstream e {{ server 127.0.0.1:{engine}; keepalive 1024; keepalive_requests 100000000; }}
server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://e; proxy_http_version 1.1;
proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 600s; }} }} }}"""
    )
    return [program, "-p", str(folder), "-c", str(conf)]


def _haproxy(program: str, folder: Path, port: int, engine: int) -> list[str]:
    conf = folder / "haproxy.cfg"
    conf.write_text(
        f"""global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout client 600s
  timeout server 600s
  timeout connect 5s
  option http-no-delay
  http-reuse always
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  server e 127.0.0.1:{engine}
"""
    )
    return [program, "-db", "-f", str(conf)]


def _litellm(program: str, folder: Path, port: int, engine: int) -> list[str]:
    conf = folder / "litellm.yaml"
    conf.write_text(
        "model_list:\n- model_name: m\n  litellm_params: {model: openai/m, api_key: none, "
        f"api_base: 'http://127.0.0.1:{engine}/v1'}}\n"
        "general_settings: {dangerously_permit_weak_or_unset_master_key: true}\n"
    )
    return [program, "--config", str(conf), "--port", str(port), "--host", "127.0.0.1"]


def _router(*start: str) -> Callable[[str, Path, int, int], list[str]]:
    def command(program: str, folder: Path, port: int, engine: int) -> list[str]:
        own = ("--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin")
        metrics = ("--prometheus-port", str(free_port()))
        return [program, *start, "--worker-urls", f"http://127.0.0.1:{engine}", *own, *metrics]

    return command


PEERS = (
    Peer("nginx", "nginx", _nginx),
    Peer("haproxy", "haproxy", _haproxy),
    Peer("smg", "smg", _router("launch")),
    Peer("vllm-router", "vllm-router", _router()),
    Peer("sglang-router", "python", _router("-m", "sglang_router.launch_router")),
    Peer("litellm", "litellm", _litellm, health="/health/liveliness", start_s=120),
)
