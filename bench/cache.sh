#!/usr/bin/env bash
# Cold reads through a mount without a cache on disk, while it fills, and from it; on 3 + 3 daemons below DIR.
# Root, and the release programs in PATH:  bench/cache.sh DIR [RUNS]
set -euo pipefail
dir=$1 runs=${2:-5}
mnt=$dir/mnt

mounted() {
    surfmount --daemon --cluster "$dir/cluster/client.bundle" --cache-dir "$dir/cache" "$@" "$mnt" >/dev/null
    pid=$(pgrep -n -f "surfmount .*$mnt")
}
unmounted() {
    umount "$mnt"
    tail --pid="$pid" -f /dev/null
    sync
    echo 3 >/proc/sys/vm/drop_caches
}
end() {
    umount -l "$mnt" 2>/dev/null || true
    surf dev down --dir "$dir/cluster" >/dev/null
    rm -rf "$dir/cluster" "$dir/cache" "$dir/read.py"
}

mkdir -p "$mnt"
surf dev up --dir "$dir/cluster" --metad 3 --blockd 3 --replicas 3 >/dev/null
trap end EXIT
mounted
python3 - "$mnt" <<'PY'
import os, sys
os.mkdir(sys.argv[1] + "/small")
with open(sys.argv[1] + "/large", "wb") as f:
    for _ in range(512): f.write(os.urandom(1 << 20))
for n in range(3000):
    with open(f"{sys.argv[1]}/small/{n}", "wb") as f: f.write(os.urandom(16384))
PY
unmounted

cat >"$dir/read.py" <<'PY'
import os, random, sys, time
mnt, what = sys.argv[1:3]
random.seed(os.getpid())
begun = time.time()
if what == "scattered":
    f = os.open(mnt + "/large", os.O_RDONLY)
    os.posix_fadvise(f, 0, 0, os.POSIX_FADV_RANDOM)
    for _ in range(2000): os.pread(f, 4096, random.randrange(512 << 8) * 4096)
    print(f"  4 KiB reads {2000 / (time.time() - begun):6.0f} op/s")
    sys.exit()
with open(mnt + "/large", "rb", buffering=0) as f:
    while f.read(1 << 20): pass
print(f"  large {512 / (time.time() - begun):6.0f} MiB/s", end="")
os.listdir(mnt + "/small")
begun = time.time()
for n in range(3000):
    with open(f"{mnt}/small/{n}", "rb", buffering=0) as f: assert len(f.read(1 << 20)) == 16384
print(f"  16 KiB files {3000 / (time.time() - begun):6.0f} op/s", end="", flush=True)
PY
for ((run = 0; run < runs; run++)); do
    rm -rf "$dir/cache"
    for how in "without:" "filling:--cache-size=4G" "from it:--cache-size=4G"; do
        printf '%s' "${how%%:*}"
        mounted ${how#*:}
        python3 "$dir/read.py" "$mnt" all
        unmounted
        [[ $how == filling* ]] && echo && continue
        mounted ${how#*:}
        python3 "$dir/read.py" "$mnt" scattered
        unmounted
    done
done
