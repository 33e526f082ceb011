# Probe: prints what a server is and has, as lines of key=value, and changes nothing. facts.py reads them.
#
# For any POSIX shell (dash, bash, ash of busybox) and any Linux: whatever is missing here is left out there. It is run
# as root, on standard input. A backslash, a line feed or a carriage return in a value is written as \\, \n or \r: no
# value can look like another line. A script that was cut off does nothing, because all is in functions until the end.

nl='
'
cr=$(printf '\r')
special="\\$nl$cr"

# say KEY VALUE
say() {
  rest=$2 said=
  [ "${#rest}" -le 4000 ] || rest=$(printf '%.4000s' "$rest")
  while :; do
    case $rest in *["$special"]*) ;; *) break ;; esac
    plain=${rest%%["$special"]*}
    rest=${rest#"$plain"}
    case $rest in
      "$nl"*) said=$said$plain'\n' ;;
      "$cr"*) said=$said$plain'\r' ;;
      *) said=$said$plain'\\' ;;
    esac
    rest=${rest#?}
  done
  printf '%s=%s%s\n' "$1" "$said" "$rest"
}

has() { command -v "$1" >/dev/null 2>&1; }

# say_line KEY FILE: the first line of a file
say_line() {
  line=
  { IFS= read -r line <"$2" || [ -n "$line" ]; } 2>/dev/null && say "$1" "$line"
}

system() {
  say time "$(date +%s.%N)"
  for file in /etc/os-release /usr/lib/os-release; do
    [ -r "$file" ] || continue
    while IFS= read -r line || [ -n "$line" ]; do
      case $line in
        ID=* | ID_LIKE=* | VERSION_ID=* | VERSION_CODENAME=* | UBUNTU_CODENAME=* | PRETTY_NAME=*)
          say "os.${line%%=*}" "${line#*=}" ;;
      esac
    done <"$file"
    break
  done
  say machine "$(uname -m)"
  say kernel "$(uname -r)"
  if libc=$(getconf GNU_LIBC_VERSION 2>/dev/null); then
    say libc "$libc"
  else
    for file in /lib/ld-musl-*.so.1; do
      [ -x "$file" ] && say libc "musl $("$file" 2>&1)"
    done
  fi
  if [ -d /run/systemd/system ]; then say init systemd; elif [ -d /run/openrc ]; then say init openrc; else say init none; fi
  while read -r name size _; do
    [ "$name" != MemTotal: ] || say memory.MemTotal "$size"
  done </proc/meminfo
  say_line sysctl.net.ipv4.ip_forward /proc/sys/net/ipv4/ip_forward
  say_line sysctl.net.ipv4.vs.conntrack /proc/sys/net/ipv4/vs/conntrack
  tools=
  for name in nft iptables setpriv curl wget modprobe timeout sha256sum; do has "$name" && tools="$tools $name"; done
  say tools "$tools"
}

rights() {
  say uid "$(id -u)"
  say user "$(id -un)"
  if [ "$(id -u)" = 0 ]; then
    say sudo root
  elif ! has sudo; then
    say sudo missing
  elif answer=$(sudo -n true 2>&1); then
    say sudo free
  else
    say sudo "$answer"
  fi
}

pythons() {
  program='
import struct, sys
from importlib.util import find_spec
wanted = "_ctypes _socket asyncio email hashlib http json multiprocessing tarfile tomllib xml xmlrpc zipfile zlib".split()
missing = [name for name in wanted if find_spec(name) is None]
print("%d.%d.%d" % sys.version_info[:3], sys.implementation.name, struct.calcsize("P") * 8,
      getattr(sys, "abiflags", "") or "-", ",".join(missing) or "-")'
  seen=:
  for folder in /usr/bin /usr/local/bin /bin; do
    for file in "$folder"/python3 "$folder"/python3.[0-9] "$folder"/python3.[0-9][0-9]; do
      [ -x "$file" ] && [ ! -d "$file" ] || continue
      real=$(readlink -f "$file") || real=$file
      case $seen in *":$real:"*) continue ;; esac
      seen=$seen$real:
      # -B: no compiled files are left behind.
      answer=$($limit "$real" -I -S -B -c "$program" 2>/dev/null) && say python "$answer $real"
    done
  done
}

packages() {
  names='docker.io docker-ce docker docker-engine moby-engine podman podman-docker containerd containerd.io runc'
  if has dpkg-query; then
    # shellcheck disable=SC2086
    dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\n' $names 2>/dev/null |
      while read -r state name version; do
        case $state in ?i*) say package "$name $version" ;; esac
      done
  elif has rpm; then
    # shellcheck disable=SC2086
    rpm -q --qf '%{NAME} %{VERSION}-%{RELEASE}\n' $names 2>/dev/null |
      while read -r name version more; do
        [ -n "$more" ] || say package "$name $version"
      done
  elif has apk; then
    # shellcheck disable=SC2086
    apk info -e $names 2>/dev/null | while read -r name; do say package "$name"; done
  fi
  for file in /var/lib/dpkg/lock-frontend /var/lib/dpkg/lock /var/lib/apt/lists/lock /var/lib/rpm/.rpm.lock \
    /usr/lib/sysimage/rpm/.rpm.lock /lib/apk/db/lock; do
    [ -e "$file" ] || continue
    inode=$(ls -i "$file" 2>/dev/null)
    inode=${inode%% *}
    while read -r _ _ _ _ pid place _; do
      [ "${place##*:}" = "$inode" ] && holder "$pid"
    done </proc/locks
  done 2>/dev/null
  for file in /var/cache/dnf/metadata_lock.pid /var/lib/dnf/rpmdb_lock.pid /run/yum.pid /run/zypp.pid; do
    pid=
    [ -r "$file" ] && read -r pid <"$file"
    case $pid in '' | *[!0-9]*) ;; *) holder "$pid" ;; esac
  done
}

# holder PID: of the lock of a package manager
holder() {
  name=
  [ -d "/proc/$1" ] || return 0
  [ -r "/proc/$1/comm" ] && IFS= read -r name <"/proc/$1/comm"
  say lock "$1 $name"
}

docker_engine() {
  unset DOCKER_HOST DOCKER_CONTEXT
  if has docker; then
    say docker.client "$(command -v docker)"
    answer=$($limit docker info --format '{{.ServerVersion}}' 2>&1)
    case $answer in [0-9]*) say docker.engine "$answer" ;; *) say docker.error "$answer" ;; esac
  fi
  [ -S /var/run/docker.sock ] && say docker.socket "$(stat -c '%a %G' /var/run/docker.sock 2>/dev/null)"
}

kernel_modules() {
  release=$(uname -r)
  wanted='/(ip_vs[a-z0-9_]*|dummy|nf_tables|overlay)\.ko'
  say modules.available "$(grep -ohsE "$wanted" "/lib/modules/$release/modules.dep" | sort -u)"
  say modules.builtin "$(grep -ohsE "$wanted" "/lib/modules/$release/modules.builtin")"
  loaded=
  for folder in /sys/module/ip_vs* /sys/module/dummy /sys/module/nf_tables /sys/module/overlay; do
    [ -d "$folder" ] && loaded="$loaded ${folder##*/}"
  done
  [ -e /proc/net/ip_vs ] && loaded="$loaded ip_vs"
  say modules.loaded "$loaded"
  has modprobe && if answer=$(modprobe -n ip_vs 2>&1); then say modprobe yes; else say modprobe "$answer"; fi
}

disks() {
  for folder in /opt /var /tmp /etc; do
    there=$folder
    while [ ! -d "$there" ]; do
      there=${there%/*}
      there=${there:-/}
    done
    df -Pk "$there" 2>/dev/null | {
      read -r _
      read -r _ total _ free _ mount && if [ -w "$there" ]; then say disk "$folder $total $free yes $mount"; else
        say disk "$folder $total $free no $mount"
      fi
    }
  done
}

network() {
  if has ip; then
    ip -o addr show 2>/dev/null | while read -r _ device family address _; do
      case $family:$address in inet6:fe80:*) ;; inet:* | inet6:*) say address "$device $address" ;; esac
    done
  else
    for address in $(hostname -I 2>/dev/null); do say address "- $address"; done
  fi
  if has ss; then
    ss -ltnp 2>/dev/null | while read -r _ _ _ address _ who; do say listen "$address $who"; done
  elif has netstat; then
    netstat -ltnp 2>/dev/null | while read -r _ _ _ address _ _ who; do say listen "$address $who"; done
  else
    grep -hs ' 0A ' /proc/net/tcp /proc/net/tcp6 | while read -r _ address _; do say listen "$address"; done
  fi
  # The brackets keep grep from finding itself.
  grep -ls '/opt/treescal[e]/' /proc/[0-9]*/cmdline | while read -r file; do
    file=${file%/cmdline}
    say ours "${file##*/}"
  done
}

# Of systemd or OpenRC.
unit() {
  if [ -d /run/systemd/system ]; then
    $limit systemctl show -p LoadState -p UnitFileState -p ActiveState treescale.service 2>/dev/null |
      while IFS= read -r line; do say "unit.treescale.${line%%=*}" "${line#*=}"; done
  elif [ -d /run/openrc ]; then
    [ -e /etc/init.d/treescale ] && say unit.treescale.LoadState loaded
    [ -e /etc/runlevels/default/treescale ] && say unit.treescale.UnitFileState enabled
    [ -e /run/openrc/started/treescale ] && say unit.treescale.ActiveState active
  fi
}

treescale() {
  while IFS=: read -r name _ uid gid _ || [ -n "$name" ]; do
    case $name in treescale | treescale-docker | treescale-exec | treescale-dashboard) say account "$name $uid $gid" ;; esac
  done </etc/passwd
  while IFS=: read -r name _ gid members || [ -n "$name" ]; do say group "$name $gid $members"; done </etc/group
  say current "$(readlink /opt/treescale/current)"
  say_line pending /var/lib/treescale/pending
  for folder in /opt/treescale/releases/*/; do
    [ -d "$folder" ] || continue
    python= since=
    [ -r "${folder}ready" ] && IFS= read -r python <"${folder}ready" && since=$(stat -c %Y "${folder}ready")
    folder=${folder%/}
    say release "${folder##*/} ${since:-0} $python"
  done
  etc=/etc/treescale
  stat -c '%a %U %G %n' /opt/treescale /opt/treescale/releases $etc $etc/conf.d $etc/node.key $etc/treescale.toml \
    $etc/supervisord.conf $etc/dashboard-users.json /var/lib/treescale /var/lib/treescale/manifest.json \
    /var/lib/treescale-dashboard /var/log/treescale /var/log/treescale/docker /run/treescale 2>/dev/null |
    while IFS= read -r line; do say stat "$line"; done
  sha256sum $etc/treescale.toml /var/lib/treescale/manifest.json /etc/systemd/system/treescale.service \
    /etc/init.d/treescale /etc/modules-load.d/treescale.conf /etc/sysctl.d/90-treescale.conf 2>/dev/null |
    while read -r digest file; do say digest "$digest $file"; done
  if [ -r $etc/supervisord.conf ]; then
    # Its password is each node's own.
    digest=$(sed -e 's/^password=.*/password=/' -e 's/SUPERVISOR_PASSWORD=.*/SUPERVISOR_PASSWORD=/' \
      $etc/supervisord.conf | sha256sum)
    say digest "${digest%% *} $etc/supervisord.conf"
  fi
  if [ -r $etc/node.key ] && [ -x /opt/treescale/current/bin/treescale ]; then
    # A busy server takes long to start it, and a key that is not told would keep the server from being built.
    if key=$(PYTHONDONTWRITEBYTECODE=1 ${limit:+timeout 30} /opt/treescale/current/bin/treescale keys public $etc/node.key 2>&1); then
      say key "$key"
    else
      say key.error "$key"
    fi
  fi
}

probe() {
  export LC_ALL=C
  PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  limit=
  has timeout && limit='timeout 5'
  echo treescale-probe=1
  for part in system rights pythons packages docker_engine kernel_modules disks network treescale unit; do
    $part
  done
  echo end=1
}

probe </dev/null 2>/dev/null
