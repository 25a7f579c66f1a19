#!/bin/bash
# Runs an image as strictly as the manifests do, on a machine without a container engine: check.sh IMAGE PICTURE
#
# Needs root and buildah (STORAGE_DRIVER=vfs where no overlay can be mounted). The image's root is mounted read-only with
# /tmp as memory, in namespaces of its own for mounts, processes and the network, as the image's own user with no
# capabilities and no way to new ones. Serves, waits for `cifarserve health`, classifies PICTURE, and stops by SIGTERM.
set -euo pipefail
image=$1 picture=$(realpath "$2")
if [[ ${INSIDE:-} != yes ]]; then
  container=$(buildah from --pull-never "$image")
  trap 'buildah rm "$container" > /dev/null' EXIT
  root=$(buildah mount "$container")
  user=$(buildah inspect --type image --format '{{.OCIv1.Config.User}}' "$image")
  mapfile -t environment < <(buildah inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$image" | grep .)
  INSIDE=yes ROOT=$root RUN_AS=$user unshare --mount --pid --net --fork --kill-child "$0" "$image" "$picture" "${environment[@]}"
  exit
fi
shift 2
environment=("$@")
ip link set lo up
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount -t tmpfs -o size=64m,mode=1777 tmpfs "$ROOT/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$ROOT/dev"
for device in null urandom; do
  touch "$ROOT/dev/$device"
  mount --bind "/dev/$device" "$ROOT/dev/$device"
done
cp "$picture" "$ROOT/tmp/picture"
mount -o remount,bind,ro "$ROOT"

within=(setpriv --no-new-privs env -i "${environment[@]}" CIFARSERVE_INSECURE=true
  /usr/sbin/chroot --userspec="$RUN_AS" --groups= "$ROOT")
"${within[@]}" cifarserve serve &
server=$!
began=$SECONDS
until "${within[@]}" cifarserve health > /dev/null 2>&1; do
  kill -0 "$server"
  ((SECONDS - began < 60))
done
"${within[@]}" cifarserve health
"${within[@]}" cifarserve classify /tmp/picture
"${within[@]}" python3 -c '
import os, pathlib, urllib.request
status = dict(line.split(":\t") for line in pathlib.Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
assert os.getuid() == os.getgid() == 65532, "the user is not the numeric one"
assert int(status["CapEff"], 16) == 0 and status["NoNewPrivs"] == "1"
for place in ("/", "/models", "/opt/cifarserve"):
    try:
        pathlib.Path(place, "written").touch()
    except OSError:
        continue
    raise SystemExit(f"{place} can be written")
page = urllib.request.urlopen("http://127.0.0.1:8002/metrics").read().decode()
assert "cifarserve_requests_total{code=\"OK\"" in page, page
'
kill -TERM "$server"
wait "$server"
echo "ran as $RUN_AS with a read-only root: healthy, one picture classified, ended by SIGTERM with status 0"
