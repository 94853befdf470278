from ubuntu:14.04
maintainer Somebody <somebody@example.org>
env DEBIAN_FRONTEND noninteractive
env FOO bar baz
run echo "deb http://archive.ubuntu.com/ubuntu trusty main universe" > /etc/apt/sources.list && \
    apt-get update

# two in one
add . /code
volume ["/data", "/var/log"]
volume /one /two
onbuild copy . /app/src
onbuild run ["make", "-C", "/app/src"]
expose 22 80 443/tcp 53/udp 8000-8005
user nobody:nogroup
cmd service ssh start && tail -f /dev/null
