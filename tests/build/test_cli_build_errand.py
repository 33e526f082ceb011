"""What `treescale build` makes of its two files and its options, before it logs in anywhere."""

import click
import pytest
from click.testing import CliRunner

from tsbus.cli.build.errand import EXAMPLE, Errand
from tsbus.cli.build.groups import build
from tsbus.cli.build.options import complete_server, complete_tag
from tsbus.config import check


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the two files, where the command runs."""
    monkeypatch.chdir(tmp_path)
    servers = [
        f'[servers.web{number}]\nip = "192.0.2.{number}"\nservice_port = 8888\ntags = ["web"]\n' for number in (1, 2)
    ]
    root = '[servers.root]\nip = "192.0.2.9"\nservice_port = 8888\nchilds = ["web1", "web2"]\n'
    (tmp_path / "treescale.toml").write_text("".join([root, *servers]))
    (tmp_path / "console.toml").write_text('[ssh.root]\nhost = "192.0.2.9"\n[build]\nmax_fail = "50%"\n')
    return tmp_path


def refused(*words):
    """What is said of a command line that ends with 2 before it logs in anywhere."""
    done = CliRunner().invoke(build, words)
    assert done.exit_code == 2, done.output
    return done.stderr


def test_without_a_file_there_is_an_example(tmp_path, monkeypatch):
    """What is printed is a console.toml that can be used as it is."""
    monkeypatch.chdir(tmp_path)
    said = refused("plan")
    assert said.splitlines()[-1].startswith("build: console.toml: there is no such file")
    (tmp_path / "example.toml").write_text(EXAMPLE)
    assert EXAMPLE in said and check(tmp_path / "example.toml")[0] is not None


def test_all_problems_of_both_files_are_told_at_once(files):
    """A server without an entry is not one of them: its plan tells."""
    (files / "treescale.toml").write_text('[servers.root]\nip = "192.0.2.9"\nservice_port = 0\nchilds = ["nobody"]\n')
    said = refused()
    assert "treescale.toml:3:1: error" in said and "treescale.toml:4:11: error" in said
    (files / "console.toml").write_text("ssh = 7\n")
    assert "console.toml:1:" in refused()
    (files / "console.toml").write_text("[ssh.root]\nport = 0\n")
    said = refused()
    assert "host: is missing" in said and "port: is out of range" in said
    assert "treescale.toml:3:1: error" in said and "treescale.toml:4:11: error" in said
    (files / "treescale.toml").rename(files / "other.toml")
    (files / "console.toml").write_text('tree = "other.toml"\nnonsense = 1\n')
    said = refused()
    assert "nonsense" in said and "other.toml:4:11: error" in said
    (files / "console.toml").write_text("tree = 7\n")
    assert "other.toml" not in refused()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", "--limit", "web9"), "no node named 'web9'"),
        (("plan", "--tag", "db"), "db"),
        (("plan", "--limit", "root", "--tag", "web"), "no server is in root and in @web"),
        (("plan", "--max-fail", "some"), "neither a number nor a share"),
        (("plan", "--console", "treescale.toml"), "give --console the file that tells how to log in"),
        (("--limit", "web1", "plan"), "options belong behind the command: build plan"),
        (("plam",), "Did you mean 'plan'?"),
        (("remove", "web1"), "web1 is still in the tree"),
        (("remove", "web7"), "nobody knows how to log in to web7"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anybody_logs_in(files, words, said):
    """Unknown servers, tags and values, and options in the wrong place, end with 2."""
    assert said in refused(*words)


def test_options_choose_servers_and_limits(files):
    """What is chosen is what all options leave; shares are of the servers that are meant; the file has the rest."""
    errand = Errand(files / "console.toml", limit="root,web1", tags=("web",))
    assert errand.names == ("web1",)
    assert Errand(files / "console.toml").options("build").max_fail == 1
    assert Errand(files / "console.toml", max_fail="70%").options("build").max_fail == 2
    assert Errand(files / "console.toml", max_fail="7").options("build").max_fail == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--limit", "web1", "--yes"), "web1: cannot be built"),
        (("apply", "--limit", "web1", "--yes"), "failed, access: web1"),
        (("plan", "--limit", "web1"), "1 server: 1 cannot be built"),
        (("uninstall", "web1", "--yes"), "web1: cannot be cleaned"),
        (("upgrade", "--limit", "web1", "--yes"), "1 server: 1 cannot be upgraded"),
        (("rotate-keys", "web1", "--yes"), "1 server: 1 cannot be given a new key"),
    ],
)
def test_a_server_in_trouble_is_told_once(files, words, said):
    """In the words of the errand; why and what to do are in one place, however much is shown."""
    done = CliRunner().invoke(build, words)
    assert done.exit_code == 4, done.output
    assert said in done.output
    assert done.output.count('console.toml has no entry for "web1"') == 1
    assert done.output.count("[ssh.web1]") == 1


def test_nothing_has_failed_last_time(files):
    """Then --failed means nobody, which is no failure."""
    done = CliRunner().invoke(build, ["--failed"])
    assert done.exit_code == 0 and "nothing to do" in done.stderr


def test_servers_and_tags_complete_from_the_file(files):
    """The tree need not stand; a file that cannot be read completes nothing."""
    context = click.Context(build, info_name="build")
    context.params["console_file"] = files / "console.toml"
    option = click.Option(["--limit"])
    assert complete_server(context, option, "w") == ["web1", "web2"]
    assert complete_server(context, option, "web1,@") == ["web1,@web"]
    assert complete_tag(context, option, "w") == ["web"]
    (files / "treescale.toml").unlink()
    assert complete_server(context, option, "w") == []
