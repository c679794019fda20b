#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Tests of a kernel module in guests, on any runner that has a shell:
#
#     examples/ci/run.sh [WHEEL|PACKAGE] [pytest's words]
#
# Exit code: pytest's (0 all passed, 1 something failed); 3: the runner lacks something.
# LAB_MUST_RUN says what may not be skipped: lab (guests at all), kvm. Results: junit.xml, runs/.
set -eu

what=${1:-skblab}
[ $# -eq 0 ] || shift
here=$PWD
home=${CI_VENV:-$here/.ci-venv}

for program in qemu-system-x86_64 gcc make strip depmod xz python3; do
	PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || {
		echo "run.sh: there is no $program here" >&2
		echo "  try: apt-get install qemu-system-x86 gcc make binutils libc6-dev libelf1" \
			"kmod xz-utils python3-venv" >&2
		exit 3
	}
done

# As root on a runner with KVM; as anybody the group of /dev/kvm has to be right already.
if [ -e /dev/kvm ] && [ ! -w /dev/kvm ] && [ "$(id -u)" -eq 0 ]; then
	chmod 0666 /dev/kvm
fi

[ -x "$home/bin/python" ] || python3 -m venv "$home"
"$home/bin/python" -m pip install -q "$what" pytest pytest-xdist

export LAB_RUNS="${LAB_RUNS:-$here/runs}" LAB_MUST_RUN="${LAB_MUST_RUN:-lab}"
exec "$home/bin/python" -m pytest --junitxml=junit.xml "$@"
