"""Each rule of the configuration has a case here: a text, and the exact line that a person reads about it."""

import json
import textwrap

import pytest

from tsbus.config import ConfigError, check, load, loads
from tsbus.config.document import MAX_BYTES, MAX_PROBLEMS

NODE = """
[servers.node1]
ip = "10.0.0.1"
service_port = 8888
"""
"""A sound tree of four lines and one empty one before them; cases add to it from line 6 on."""
KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"

TOML_CASES = {
    "no server": (
        "",
        "t.toml: error: servers: there is no server; add a table [servers.NAME] with ip and service_port",
    ),
    "empty servers": (
        "[servers]",
        "t.toml:1:2: error: servers: there is no server; add a table [servers.NAME] with ip and service_port",
    ),
    "server is no table": ("[servers]\nnode1 = 5", "t.toml:2:1: error: servers.node1: must be a table"),
    "missing key": (
        '[servers.node1]\nip = "10.0.0.1"',
        "t.toml:1:10: error: servers.node1.service_port: is missing; add service_port = ...",
    ),
    "unknown key": (
        NODE + "chidls = []",
        't.toml:5:1: error: servers.node1.chidls: no such key; did you mean "childs"?',
    ),
    "unknown section": (NODE + "[buss]", 't.toml:5:2: error: buss: no such key; did you mean "bus"?'),
    "unlike any key": (
        NODE + "[operators.al]\nrole='admin'\nzzz = 1",
        "t.toml:7:1: error: operators.al.zzz: no such key; known here: name, public_key, role",
    ),
    "wrong type": (NODE + "tags = 5", "t.toml:5:1: error: servers.node1.tags: must be an array; put it in [ ]"),
    "wrong element": (NODE + "tags = ['a',\n 5]", "t.toml:6:2: error: servers.node1.tags[1]: must be text in quotes"),
    "true is no number": (NODE + "[bus]\nping_ms = true", "t.toml:6:1: error: bus.ping_ms: must be a whole number"),
    "huge number": (
        NODE + f"[bus]\nsteady_s = 0x{'f' * 9000}",
        "t.toml:6:1: error: bus.steady_s: must be a number",
    ),
    "huge number for a role": (
        NODE + f"[policy.users]\nroot = 0x{'f' * 9000}",
        "t.toml:6:1: error: policy.users.root: must be the name of a role; known here: none, observe, operate, admin",
    ),
    "true is no number of seconds": (
        NODE + "[bus]\nsteady_s = true",
        "t.toml:6:1: error: bus.steady_s: must be a number",
    ),
    "port range": (
        "[servers.node1]\nip = '10.0.0.1'\nservice_port = 65536",
        "t.toml:3:1: error: servers.node1.service_port: is out of range; give a value from 1 to 65535",
    ),
    "mistyped address": (
        "[servers.node1]\nip = '10.0.0.256'\nservice_port = 1",
        't.toml:2:1: error: servers.node1.ip: "10.0.0.256" is no IP address or host name; write it like "10.0.0.1"',
    ),
    "address of nobody": (
        "[servers.node1]\nip = '0.0.0.0'\nservice_port = 1",
        "t.toml:2:1: error: servers.node1.ip: 0.0.0.0 cannot be dialled; give the address others reach this node at",
    ),
    "name with target grammar": (
        "[servers.'a,b']\nip = '10.0.0.1'\nservice_port = 1",
        't.toml:1:10: error: servers."a,b": "a,b" cannot be a name; '
        "use letters, digits, - _ . (at most 64), beginning with a letter, a digit or _",
    ),
    "name unlike its table": (
        NODE + "name = 'node2'",
        't.toml:5:1: error: servers.node1.name: the name is "node2" but the table is "node1"; '
        "make both the same, or leave name out",
    ),
    "tag with @": (
        NODE + "tags = ['@web']",
        't.toml:5:9: error: servers.node1.tags[0]: "@web" cannot be a tag; write it without the @: "web"',
    ),
    "bad key": (
        NODE + "public_key = 'abc'",
        "t.toml:5:1: error: servers.node1.public_key: this is no public key; "
        "a key is 40 characters of Z85 (32 bytes); copy the line after public-key =",
    ),
    "key beyond 32 bytes": (
        NODE + f"public_key = '{'#' * 40}'",
        "t.toml:5:1: error: servers.node1.public_key: this is no public key; "
        "a key is 40 characters of Z85 (32 bytes); copy the line after public-key =",
    ),
    "operator without key": (
        NODE + "[operators.al]\npublic_key = ''",
        "t.toml:6:1: error: operators.al.public_key: the public key is empty; "
        "an operator is known by the key; give it here",
    ),
    "unknown role": (
        NODE + f"[operators.al]\npublic_key = '{KEY}'\nrole = 'admn'",
        't.toml:7:1: error: operators.al.role: no role named "admn"; did you mean "admin"?',
    ),
    "user with a role that is none": (
        NODE + "[policy.users]\nroot = 3",
        "t.toml:6:1: error: policy.users.root: must be the name of a role; known here: none, observe, operate, admin",
    ),
    "bad user": (
        NODE + "[policy.users]\n'a b' = 'admin'",
        't.toml:6:1: error: policy.users."a b": "a b" is no user or group; write a user name, a uid, or "@group"',
    ),
    "user that would ring the terminal's bell": (
        NODE + '[policy.users]\n"a\\u0007" = "admin"',
        't.toml:6:1: error: policy.users."a\\u0007": "a\\u0007" is no user or group; '
        'write a user name, a uid, or "@group"',
    ),
    "current node": (
        "current_node = 'nod1'" + NODE,
        't.toml:1:1: error: current_node: no server named "nod1"; did you mean "node1"?',
    ),
    "own child": (
        NODE + "childs = ['node1']",
        "t.toml:5:11: error: servers.node1.childs[0]: a server cannot be its own child; take it out",
    ),
    "child of two": (
        NODE
        + "childs = ['b', 'c']\n[servers]\nb = {ip='b', service_port=1, childs=['c']}\nc = {ip='c', service_port=1}",
        't.toml:7:38: error: servers.b.childs[0]: "c" is already a child of "node1"; '
        "a server has one parent; take it out of one of the two",
    ),
    "circle": (
        "[servers]\na = {ip='a', service_port=1, childs=['b']}\nb = {ip='b', service_port=1, childs=['c']}\n"
        "c = {ip='c', service_port=1, childs=['a']}",
        "t.toml:2:30: error: servers.a.childs: the childs go round in a circle: a -> b -> c -> a; "
        "one of them must not be a child of the next",
    ),
    "two roots": (
        NODE + "[servers.b]\nip = 'b'\nservice_port = 1",
        't.toml:5:10: error: servers.b: is no child of any server, and neither is "node1": a tree has one root; '
        'add "b" to the childs of a server',
    ),
    "same endpoint": (
        NODE + "childs = ['b']\n[servers.b]\nip = '10.0.0.1'\nservice_port = 8888",
        't.toml:8:1: error: servers.b.service_port: 10.0.0.1:8888 is already the endpoint of "node1"; '
        "give it another ip or service_port",
    ),
    "key of another server": (
        NODE + f"public_key = '{KEY}'\nchilds = ['b']\n"
        f"[servers.b]\nip = '10.0.0.2'\nservice_port = 8888\nother_public_key = '{KEY}'",
        't.toml:10:1: error: servers.b.other_public_key: is already the key of server "node1"; '
        "give each a key pair of its own (treescale keys new FILE)",
    ),
    "key of a server and a person": (
        NODE + f"public_key = '{KEY}'\n[operators.al]\npublic_key = '{KEY}'",
        't.toml:7:1: error: operators.al.public_key: is already the key of server "node1"; '
        "give each a key pair of its own (treescale keys new FILE)",
    ),
    "key of two people": (
        NODE + f"[operators.al]\npublic_key = '{KEY}'\n[operators.bo]\npublic_key = '{KEY}'",
        't.toml:8:1: error: operators.bo.public_key: is already the key of operator "al"; '
        "give each a key pair of its own (treescale keys new FILE)",
    ),
    "scheduler": (
        NODE + "[balancers]\naddress = '10.0.0.1:80'\nalg = 'wrrr'",
        't.toml:7:1: error: servers.node1.balancers.alg: "wrrr" is not known; did you mean "wrr"?',
    ),
    "balancer address": (
        NODE + "[balancers.web]\naddress = 'fd00::1:80'",
        't.toml:6:1: error: servers.node1.balancers.web.address: "fd00::1:80" is no address; '
        'write IP:PORT or IP:FIRST-LAST, like "10.0.0.1:443" or "[fd00::1]:8000-8010"',
    ),
    "balancer on the bus": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:8888'",
        "t.toml:6:1: error: servers.node1.balancers.web.address: 10.0.0.1:8888 is already used by the bus; "
        "give it another address or port",
    ),
    "balancers at one address": (
        NODE + "[balancers.a]\naddress = '10.0.0.1:1'\n[balancers.b]\naddress = '10.0.0.1:1'",
        't.toml:8:1: error: servers.node1.balancers.b.address: 10.0.0.1:1 is already used by balancer "a"; '
        "give it another address or port",
    ),
    "balancers of two nodes on one machine": (
        NODE + "childs = ['b']\n[balancers.a]\naddress = '10.0.0.9:1'\n[servers.b]\nip = '10.0.0.1'\nservice_port = 2\n"
        "[balancers.b]\naddress = '10.0.0.9:1'",
        't.toml:12:1: error: servers.b.balancers.b.address: 10.0.0.9:1 is already used by balancer "a" of "node1"; '
        "give it another address or port",
    ),
    "balancer on the bus of another node on this machine": (
        NODE + "childs = ['b']\n[balancers.a]\naddress = '10.0.0.1:2'\n[servers.b]\nip = '10.0.0.1'\nservice_port = 2",
        't.toml:7:1: error: servers.node1.balancers.a.address: 10.0.0.1:2 is already used by the bus of "b"; '
        "give it another address or port",
    ),
    "balancer called like the direct one": (
        NODE + "[balancers]\naddress = '10.0.0.1:1'\n[balancers.default]\naddress = '10.0.0.1:2'",
        "t.toml:7:12: error: servers.node1.balancers.default: this name is taken by the balancer in [balancers] itself",
    ),
    "container port": (
        NODE + "[balancers]\naddress = '10.0.0.1:80'\n[containers]\nnginx = -1",
        "t.toml:8:1: error: servers.node1.balancers.containers.nginx: is out of range; give a value from 0 to 65535",
    ),
    "image name": (
        NODE + "[balancers]\naddress = '10.0.0.1:80'\n[containers]\n'a b' = 1",
        't.toml:8:1: error: servers.node1.balancers.containers."a b": "a b" is no image name; '
        'write it as for docker run, like "nginx:1.27"',
    ),
    "balanced server": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80'\n[balancers.web.servers]\nnod1 = 80",
        't.toml:8:1: error: servers.node1.balancers.web.servers.nod1: no server named "nod1"; did you mean "node1"?',
    ),
    "balanced server above": (
        NODE + "childs = ['b']\n[servers.b]\nip = '10.0.0.2'\nservice_port = 1\n"
        "[balancers.web]\naddress = '10.0.0.2:80'\n[balancers.web.servers]\nnode1 = 80",
        't.toml:12:1: error: servers.b.balancers.web.servers.node1: "node1" is not below "b"; '
        "a balancer serves the servers below its own; put it on a server that is above this one",
    ),
    "balanced server is the address itself": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80-90'\n[balancers.web.servers]\nnode1 = 85",
        't.toml:8:1: error: servers.node1.balancers.web.servers.node1: "node1" at this port is the balancer\'s own '
        "address 10.0.0.1:80-90; give the port that the program behind it listens on",
    ),
    "balanced server of the other family": (
        NODE + "[balancers.web]\naddress = '[fd00::1]:80'\n[balancers.web.servers]\nnode1 = 80",
        't.toml:8:1: error: servers.node1.balancers.web.servers.node1: "node1" has the address 10.0.0.1, which is of '
        "another family than [fd00::1]:80; the kernel does not translate between IPv4 and IPv6; take it out",
    ),
    "balanced server is another balancer of its server": (
        NODE + "[balancers.a]\naddress = '10.0.0.1:80'\n[balancers.a.servers]\nnode1 = 81\n"
        "[balancers.b]\naddress = '10.0.0.1:81'",
        't.toml:8:1: error: servers.node1.balancers.a.servers.node1: this is the address of balancer "b" of the same '
        "server; one kernel balances a connection once; name its servers here too",
    ),
    "balancer of two families": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80'\naddresses = ['[fd00::1]:80']",
        "t.toml:7:14: error: servers.node1.balancers.web.addresses[0]: [fd00::1]:80 and 10.0.0.1:80 are of two "
        "families, IPv4 and IPv6; make a balancer for each of them",
    ),
    "balancers in each other's range": (
        NODE + "[balancers.a]\naddress = '10.0.0.1:10-20'\n[balancers.b]\naddress = '10.0.0.1:20-30'",
        't.toml:8:1: error: servers.node1.balancers.b.address: 10.0.0.1:20-30 is already used by balancer "a"; '
        "give it another address or port",
    ),
    "balancer on all addresses": (
        NODE + "[balancers.web]\naddress = '0.0.0.0:80'",
        "t.toml:6:1: error: servers.node1.balancers.web.address: 0.0.0.0 stands for all addresses, and the kernel "
        "balances one; give an address that clients reach this node at",
    ),
    "balancer on the loopback": (
        NODE + "[balancers.web]\naddress = '127.0.0.1:80'",
        "t.toml:6:1: error: servers.node1.balancers.web.address: 127.0.0.1 is a loopback address, which the kernel "
        "does not balance; give an address that clients reach this node at",
    ),
    "balancer's range backwards": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:90-80'",
        't.toml:6:1: error: servers.node1.balancers.web.address: "10.0.0.1:90-80" is no address; '
        'write IP:PORT or IP:FIRST-LAST, like "10.0.0.1:443" or "[fd00::1]:8000-8010"',
    ),
    "weight out of range": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80'\nalg = 'wrr'\n[balancers.web.server_weights]\nnginx = 65536",
        "t.toml:9:1: error: servers.node1.balancers.web.server_weights.nginx: is out of range; "
        "give a value from 0 to 65535",
    ),
    "weight of nobody": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80'\n[containers]\nnginx = 80\n"
        "[balancers.web.server_weights]\nngin = 2",
        "t.toml:10:1: error: servers.node1.balancers.web.server_weights.ngin: neither of containers nor of servers; "
        'did you mean "nginx"?',
    ),
    "containers without nat": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80'\nforward = 'dr'\n[balancers.web.containers]\nnginx = 0",
        "t.toml:8:16: error: servers.node1.balancers.web.containers: containers cannot be reached with dr: they do not "
        'have the balancer\'s address; use forward = "nat"',
    ),
    "range with dr": (
        NODE + "childs = ['b']\n[servers.b]\nip = '10.0.0.2'\nservice_port = 1\n[servers.node1.balancers.web]\n"
        "address = '10.0.0.1:80-90'\nforward = 'dr'\n[balancers.web.servers]\nb = 80",
        "t.toml:13:1: error: servers.node1.balancers.web.servers.b: with dr a packet keeps the port that the client "
        "came to, which is not always 80; write 0",
    ),
    "other ports with persistence": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80'\naddresses = ['10.0.0.9:80']\npersistence_s = 60\n"
        "[balancers.web.containers]\nnginx = 8080",
        "t.toml:10:1: error: servers.node1.balancers.web.containers.nginx: with persistence_s and several addresses or "
        "ports a packet keeps the port that the client came to, which is not always 8080; write 0, or make a balancer "
        "of each address and port",
    ),
    "sorry server is the balancer": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80'\nsorry_server = '10.0.0.1:80'",
        "t.toml:7:1: error: servers.node1.balancers.web.sorry_server: 10.0.0.1:80 is the balancer's own address; "
        "give another one",
    ),
    "sorry server of the other family": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80'\nsorry_server = '[fd00::1]:80'",
        "t.toml:7:1: error: servers.node1.balancers.web.sorry_server: [fd00::1]:80 is of another family than "
        "10.0.0.1:80; the kernel does not translate between IPv4 and IPv6",
    ),
    "sorry server with a range": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80'\nsorry_server = '10.0.0.2:80-90'",
        't.toml:7:1: error: servers.node1.balancers.web.sorry_server: "10.0.0.2:80-90" is more than one port; '
        'write IP:PORT, like "10.0.0.9:80"',
    ),
    "least connections with nftables": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80'\nalg = 'lc'\n[balancing]\nbackend = 'nftables'",
        "t.toml:7:1: error: servers.node1.balancers.web.alg: nftables does not have the scheduler lc; "
        'use one of rr, wrr, sh, or set backend = "ipvs" in [balancing]',
    ),
    "persistence with nftables": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80'\npersistence_s = 9\n[balancing]\nbackend = 'nftables'",
        "t.toml:7:1: error: servers.node1.balancers.web.persistence_s: nftables does not keep clients with a server; "
        'use sh, or set backend = "ipvs" in [balancing]',
    ),
    "tunnel with nftables": (
        NODE + "[balancers.web]\naddress = '10.0.0.1:80'\nforward = 'tunnel'\n"
        "[servers.node1.balancing]\nbackend = 'nftables'",
        "t.toml:7:1: error: servers.node1.balancers.web.forward: nftables forwards with nat only; "
        'set backend = "ipvs" in [balancing]',
    ),
    "short header before any server": (
        "[balancers]\naddress = '10.0.0.1:80'" + NODE,
        "t.toml:1:2: error: balancers: stands outside of any server; put it below a [servers.NAME] header",
    ),
    "containers without a balancer": (
        NODE + "[containers]\nnginx = 80",
        "t.toml:5:2: error: containers: stands outside of any server; "
        "put it below a [servers.NAME] header and [balancers]",
    ),
    "containers below another server than the balancer": (
        NODE + "[balancers]\naddress = '10.0.0.1:80'\n[servers.b]\n[containers]\nnginx = 80",
        "t.toml:8:2: error: containers: stands outside of any server; "
        "put it below a [servers.NAME] header and [balancers]",
    ),
    "short header twice": (
        NODE + "[balancers]\naddress = '10.0.0.1:80'\n[balancers]",
        't.toml:7:1: error: the second [balancers] of server "node1"; '
        "give each balancer a name: [servers.node1.balancers.NAME]",
    ),
    "allow rule": (
        NODE + "[[policy.allow]]\nfrom = ''\ncommands = ['a.>.b']",
        't.toml:6:1: error: policy.allow[0].from: "" is no target; write nodes, tags or *, like "node[1-3],@web"',
    ),
    "topic pattern": (
        NODE + "[[policy.allow]]\nfrom = '*'\ncommands = ['a.>.b']",
        "t.toml:7:13: error: policy.allow[0].commands[0]: pattern 'a.>.b', token 2: "
        "'>' stands for all the rest; put it last, or write '*'",
    ),
    "rest in the middle": (
        NODE + "[[executor.allow]]\nargv = ['a', '**', 'b']",
        "t.toml:6:1: error: executor.allow[0].argv: ** stands before the last place; "
        "** is the rest of the arguments; use * for one of them",
    ),
    "argument that cannot be": (
        NODE + '[[executor.allow]]\nargv = ["a", "\\u0000"]',
        "t.toml:6:14: error: executor.allow[0].argv[1]: this text holds a character that no program can be given; "
        "take out NUL and unpaired surrogates",
    ),
    "engine's address": (
        NODE + "[docker]\nhost = '/run/docker.sock'",
        't.toml:6:1: error: docker.host: "/run/docker.sock" is no address of an engine; '
        'write it like "unix:///var/run/docker.sock" or "tcp://10.0.0.1:2376"',
    ),
    "label without a value": (
        NODE + "[docker]\nonly = 'treescale.node'",
        't.toml:6:1: error: docker.only: "treescale.node" is no label with a value; '
        'write it like "treescale.node=web1"',
    ),
    "mount that leads elsewhere": (
        NODE + "[docker]\nhost_mounts = ['/srv/**:ro', '/srv/../etc']",
        't.toml:6:30: error: docker.host_mounts[1]: "/srv/../etc" is no path that can be allowed; '
        'write it in full, like "/srv/data" or "/srv/**"',
    ),
    "capability": (
        NODE + "[docker]\ncapabilities = ['ALL', 'CAP_NET_ADMIN']",
        't.toml:6:24: error: docker.capabilities[1]: "CAP_NET_ADMIN" is no capability; '
        'write it like "NET_ADMIN", or "ALL"',
    ),
    "certificate without key": (
        NODE + "[docker]\nhost = 'tcp://10.0.0.1:2376'\ntls_cert = 'cert.pem'",
        "t.toml:5:2: error: docker: tls_cert and tls_key go together; give both, or neither",
    ),
    "certificate for a socket": (
        NODE + "[servers.node1.docker]\ntls_ca = 'ca.pem'",
        "t.toml:5:16: error: servers.node1.docker: TLS is for a host like tcp://10.0.0.1:2376; "
        "give host, or take tls_* out",
    ),
    "dashboard with half a certificate": (
        NODE + "[dashboard]\ncertificate = 'cert.pem'",
        "t.toml:5:2: error: dashboard: certificate and key go together; give both, or neither",
    ),
    "dashboard in the clear": (
        NODE + "[servers.node1.dashboard]\nhost = '0.0.0.0'",
        "t.toml:5:16: error: servers.node1.dashboard: would send passwords over the network in the clear from 0.0.0.0; "
        "give certificate and key, or put it behind a proxy on this machine (behind_proxy = true)",
    ),
    "alert of a dashboard on an unknown node": (
        NODE + "[alerts.a]\nwhen = 'node-lost'\nnode = 'nod1'",
        't.toml:7:1: error: alerts.a.node: no server named "nod1"; did you mean "node1"?',
    ),
    "alert on an event without a topic": (
        NODE + "[alerts.a]\nwhen = 'event'",
        't.toml:5:9: error: alerts.a: on is the topic of an event; give on a topic, like "backup.failed"',
    ),
    "alert for an event that lasts": (
        NODE + "[alerts.a]\nwhen = 'event'\non = 'x'\nfor_s = 3",
        "t.toml:8:1: error: alerts.a.for_s: an event does not last; take for_s out; hold_s is for events",
    ),
    "alert with half a condition": (
        NODE + "[alerts.a]\nwhen = 'event'\non = 'x'\ncondition = 'exit_code'",
        "t.toml:8:1: error: alerts.a.condition: 'exit_code' is no condition; write FIELD == VALUE, like "
        "container.exit_code != 0; instead of == also != < <= > >= or contains",
    ),
    "alert with a password in its webhook": (
        NODE + "[alerts.a]\nwhen = 'node-lost'\nto = ['https://me:secret@hooks.example']",
        "t.toml:7:7: error: alerts.a.to[0]: a name and password stand in the address; "
        "give them with header and secret_env or secret_file",
    ),
    "alert with a header and no secret": (
        NODE + "[alerts.a]\nwhen = 'node-lost'\nheader = 'Authorization'",
        "t.toml:5:9: error: alerts.a: a header and its secret go together; "
        "give header and one of secret_env and secret_file, or none of them",
    ),
    "handler without program": (
        NODE + "[handlers.h]\non = 'a'\nrun = []",
        "t.toml:7:1: error: handlers.h.run: no program is named; "
        'write the program and its arguments, like ["systemctl", "restart", "nginx"]',
    ),
    "bus range": (
        NODE + "[bus]\nqueue_bytes = 1",
        "t.toml:6:1: error: bus.queue_bytes: is out of range; give a value from 65536 to 4294967296",
    ),
    "nan": (
        NODE + "[bus]\nsteady_s = nan",
        "t.toml:6:1: error: bus.steady_s: is out of range; give a value from 0 to 86400",
    ),
    "heartbeat": (
        NODE + "[bus]\nheartbeat_timeout_ms = 500",
        "t.toml:6:1: error: bus.heartbeat_timeout_ms: must be longer than heartbeat_ms (500); "
        "three times as long is usual",
    ),
    "console's file": (
        "[ssh]",
        "t.toml: error: this is a console's file, not a tree; load the file that its `tree` names",
    ),
    "syntax": ("[servers\n", "t.toml:1:9: error: not TOML: Expected ']' at the end of a table declaration"),
    "syntax at the end": ("a = [1,\n2", "t.toml:2:2: error: not TOML: Unclosed array"),
    "syntax in a short header": (
        NODE + "[balancers] x",
        "t.toml:5:14: error: not TOML: Expected newline or end of document after a statement",
    ),
    "table twice": (
        NODE + "[servers.node1]",
        "t.toml:5:15: error: not TOML: Cannot declare ('servers', 'node1') twice",
    ),
    "deep": (
        "x = " + "[" * 100_000,
        "t.toml:1:21: error: nested more than 16 levels deep; no key of this format is so deep",
    ),
    "deep key": (
        "x." * 100_000,
        "t.toml:1:34: error: nested more than 16 levels deep; no key of this format is so deep",
    ),
}

JSON_CASES = {
    "place of a key": (
        '{"servers": {"a": {"ip": "a",\n "service_port": "1"}}}',
        "t.toml:2:2: error: servers.a.service_port: must be a whole number",
    ),
    "place of an element": (
        '{"servers": {"a": {"ip": "a", "service_port": 1,\n "tags": ["x",\n  ""]}}}',
        't.toml:3:3: error: servers.a.tags[1]: "" cannot be a name; '
        "use letters, digits, - _ . (at most 64), beginning with a letter, a digit or _",
    ),
    "key twice": (
        '{"servers": {"a": {},\n "a": {}}}',
        't.toml:2:2: error: the key "a" is given twice; keep one of them',
    ),
    "short table": (
        '{"servers": {"a": {"ip": "a", "service_port": 1}},\n "balancers": {}}',
        "t.toml:2:2: error: balancers: stands outside of any server; put it below a [servers.NAME] header",
    ),
    "syntax": ('{\n"servers": }', "t.toml:2:12: error: not JSON: Expecting value"),
    "no number": ('{"bus": NaN}', "t.toml: error: not JSON: NaN is no number of JSON"),
    "deep": (
        '{"a":' + "[" * 100_000,
        "t.toml:1:22: error: nested more than 16 levels deep; no key of this format is so deep",
    ),
    "surrogate": (
        '{"servers": {"a": {"ip": "a", "service_port": 1}}, "executor": {"audit_file": "\\ud800"}}',
        "t.toml:1:65: error: executor.audit_file: this text holds a character that no program can be given; "
        "take out NUL and unpaired surrogates",
    ),
}


@pytest.mark.parametrize(
    ("text", "message"), [*TOML_CASES.values(), *JSON_CASES.values()], ids=[*TOML_CASES, *JSON_CASES]
)
def test_a_broken_rule_is_reported_with_its_place_and_a_way_out(text, message):
    """Each rule that a file breaks gives exactly the expected line."""
    with pytest.raises(ConfigError) as caught:
        loads(text, file="t.toml")
    assert message in [str(problem) for problem in caught.value.problems if problem.severity == "error"]


def test_too_many_childs_are_refused():
    """An eleventh child is an error at that child, and the only one."""
    names = [f"n{i}" for i in range(11)]
    servers = {"top": {"ip": "top", "service_port": 1, "childs": names}}
    servers |= {name: {"ip": name, "service_port": 1} for name in names}
    with pytest.raises(ConfigError) as caught:
        loads(json.dumps({"servers": servers}), file="t.json")
    (problem,) = caught.value.problems
    assert (problem.path, problem.line) == ("servers.top.childs[10]", 1)
    assert problem.message == "11 childs are too many"


def test_all_problems_come_at_once_in_the_order_of_the_file():
    """One walk reports problems of single values, of the tree's shape and of other sections together."""
    text = textwrap.dedent("""\
        current_node = "nodeX"
        [servers.node1]
        ip = "10.0.0.1"
        service_port = 0
        childs = ["node1", "nod2"]
        [servers.node2]
        service_port = 8888
        [bus]
        ping_ms = "x"
        """)
    with pytest.raises(ConfigError) as caught:
        loads(text, file="t.toml")
    assert [(problem.line, problem.column, problem.severity) for problem in caught.value.problems] == [
        (1, 1, "error"),
        (4, 1, "error"),
        (5, 11, "error"),
        (5, 20, "warning"),
        (6, 10, "error"),
        (6, 10, "error"),
        (9, 1, "error"),
    ]
    assert str(caught.value) == "\n".join(str(problem) for problem in caught.value.problems)


def test_an_unknown_child_is_a_warning_unless_strict(tmp_path):
    """Loading passes over a child that is not defined; strict loading, as the build does, refuses it."""
    path = tmp_path / "t.toml"
    path.write_text(NODE + "childs = ['node2']")
    assert load(path).servers["node1"].childs == ("node2",)
    _, (problem,) = check(path)
    assert (
        str(problem) == f'{path}:5:11: warning: servers.node1.childs[0]: no server named "node2"; did you mean "node1"?'
    )
    with pytest.raises(ConfigError, match=r'error: .* no server named "node2"'):
        load(path, strict=True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("weights = 'cpu'", "weights: the scheduler rr knows no weights; use wrr"),
        ("alg = 'lc'\nserver_weights = {node1 = 2}", "server_weights: the scheduler lc knows no weights; use wlc"),
        (
            "alg = 'dh'",
            "alg: dh gives an address to one server, and its clients are refused while that one is drained; use sh",
        ),
        (
            "alg = 'ovf'",
            "alg: ovf gives a server one connection more than its weight, and refuses clients when all have theirs; "
            "set server_weights to what the servers can bear, or use wlc",
        ),
        (
            "alg = 'sh'\nmanage_vip = true",
            "manage_vip: 10.0.0.1 is the server's own address already; "
            "leave manage_vip out, or use an address of its own",
        ),
    ],
)
def test_what_a_balancer_cannot_use_is_a_warning(tmp_path, keys, message):
    """A key without effect is said with what would give it one, and the file loads."""
    path = tmp_path / "t.toml"
    path.write_text(f"{NODE}[servers.node1.balancers.web]\naddress = '10.0.0.1:80'\nservers = {{node1 = 81}}\n{keys}")
    found, problems = check(path)
    assert found is not None
    assert [str(each).partition(": warning: servers.node1.balancers.web.")[2] for each in problems] == [message]


def test_an_address_that_two_hosts_manage_is_a_warning(tmp_path):
    """Two nodes may have a balancer at one address; that both give it to themselves is said."""
    path = tmp_path / "t.toml"
    web = "balancers.web]\naddress = '10.0.0.9:80'\nservers = {b = 81}\nmanage_vip = true\n"
    other = "[servers.b]\nip = '10.0.0.2'\nservice_port = 1\n"
    path.write_text(f"{NODE}childs = ['b']\n[servers.node1.{web}{other}[servers.b.{web}")
    found, (problem,) = check(path)
    assert found is not None
    assert str(problem).partition(": warning: ")[2] == (
        'servers.b.balancers.web.manage_vip: 10.0.0.9 is managed by balancer "web" of "node1" as well: '
        "two hosts answer for it; have keepalived or the like give it to one at a time"
    )


def test_balancers_of_two_nodes_on_one_machine_are_a_warning(tmp_path):
    """Two nodes with one address and balancers are said, since a kernel's rules and addresses are of one of them."""
    path = tmp_path / "t.toml"
    web = "balancers.web]\naddress = '10.0.0.{}:80'\nservers = {{b = 81}}\n"
    other = "[servers.b]\nip = '10.0.0.1'\nservice_port = 1\n"
    path.write_text(f"{NODE}childs = ['b']\n[servers.node1.{web.format(8)}{other}[servers.b.{web.format(9)}")
    found, (problem,) = check(path)
    assert found is not None
    assert str(problem).partition(": warning: ")[2] == (
        'servers.b.balancers: "node1" is on this machine and has balancers too; a kernel has those of one server; '
        "fine if each has a network namespace of its own; else put them together on one"
    )


def test_a_balancer_that_may_be_refused_elsewhere_is_a_warning():
    """With backend auto, what only IPVS can do is no error, because the kernel may have it."""
    text = NODE + "[balancers.web]\naddress = '10.0.0.1:80'\nalg = 'lc'\n[balancing]\nbackend = 'auto'"
    assert loads(text).balancing.backend == "auto"


def test_a_balancer_of_labels_only_is_told(tmp_path):
    """A balancer that names nobody is allowed, and the check says who can take part."""
    path = tmp_path / "t.toml"
    path.write_text(NODE + "[servers.node1.balancers.web]\naddress = '10.0.0.1:80'")
    _, (problem,) = check(path)
    assert problem.severity == "info"
    assert problem.hint == 'only containers with the label treescale.balancer = "web" will take part'


def test_a_tag_of_nobody_is_a_warning(tmp_path):
    """A balancer may wait for servers of a tag that nobody has yet, and the check says so."""
    path = tmp_path / "t.toml"
    path.write_text(NODE + "[servers.node1.balancers.web]\naddress = '10.0.0.1:80'\nservers = {'@web' = 80}")
    tree, (problem,) = check(path)
    assert tree is not None
    assert str(problem).endswith(
        ':7:12: warning: servers.node1.balancers.web.servers."@web": no server has the tag "web"'
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = 1\nb = '\xff'", ":2:6: error: not UTF-8 text; save the file as UTF-8"),
        (b"#" * (10 << 20), f": error: larger than {MAX_BYTES >> 20} MiB; is this the right file?"),
    ],
)
def test_a_file_that_is_no_text_of_this_format_has_one_problem(tmp_path, content, message):
    """Wrong encoding and hostile size are each reported once."""
    path = tmp_path / "t.toml"
    path.write_bytes(content)
    found, problems = check(path)
    assert found is None
    assert [str(problem) for problem in problems] == [f"{path}{message}"]


@pytest.mark.parametrize("name", ["absent.toml", "", "nul\0.toml"])
def test_a_file_that_cannot_be_read_is_a_problem(tmp_path, name):
    """A missing file, a directory and an impossible path raise ConfigError like any other fault."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load(f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    "text", ["a = [" + "1," * 300_000 + "]", "[[a]]\n" * 300_000, '{"a": [' + "1," * 300_000 + "1]}"]
)
def test_endless_values_are_refused_before_they_are_parsed(text):
    """A file of a permitted size but with too many values is one problem."""
    with pytest.raises(ConfigError) as caught:
        loads(text)
    (problem,) = caught.value.problems
    assert problem.message == "more than 200000 keys and elements"


def test_endless_problems_are_counted_not_listed():
    """A file with thousands of faults shows the first and the number of the others."""
    with pytest.raises(ConfigError) as caught:
        loads(NODE + "\n".join(f"key{i} = 1" for i in range(5000)))
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert caught.value.problems[-1].message == f"{5000 - MAX_PROBLEMS} more problems"
