#!/bin/sh
# As ssh to another host: options around a host, then a command for a shell that has nothing of the caller's environment.
host=
while [ $# -gt 0 ]; do
    case $1 in
        -o | -p | -i) shift 2 ;;
        -*) shift ;;
        *)
            [ -z "$host" ] || break
            host=$1
            shift
            ;;
    esac
done
# shellcheck disable=SC2016  # for the inner shell
exec env -i HOME="$HOME" PATH=/usr/bin:/bin unshare --uts sh -c 'hostname "$0" && cd / && exec sh -c "$1"' "$host" "$*"
