# syntax=docker/dockerfile:1
FROM debian:bookworm
RUN <<EOF
set -eux
apt-get update
apt-get install -y curl
EOF
RUN python3 <<'PY'
with open("/hello", "w") as f:
    print("Hello $WORLD", file=f)
PY
COPY <<-EOT /script.sh
	#!/bin/sh
	echo "hello ${FOO}"
EOT
COPY <<a.txt <<b.txt /files/
first
a.txt
second
b.txt
RUN cat <<one > /x && cat <<two >> /x
1
one
2
two
ADD --chmod=0755 --checksum=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 https://example.org/tool /usr/local/bin/
ADD --keep-git-dir=true https://github.com/example/repo.git#v1.0:sub /src
