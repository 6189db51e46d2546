# Made by packaging/completions.py from `selvedge help`; change that, not this.
_selvedge() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} words=''
  COMPREPLY=()
  if [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W '--app-id --app-port --app-protocol --app-channel-address --app-max-concurrency --app-health-check-path --app-health-probe-interval --app-health-probe-timeout --app-health-threshold --enable-app-health-check --dapr-http-port --dapr-grpc-port --dapr-listen-addresses --dapr-public-port --dapr-public-listen-address --dapr-graceful-shutdown-seconds --metrics-port --metrics-listen-address --enable-metrics --resources-path --components-path --config --max-body-size --read-buffer-size --allowed-origins --enable-api-logging --disable-init-endpoints --mode --log-level --log-as-json --version --build-info --data-dir --threads --upstream --for --json --rate --size --user --password-file --ca-file --prefix --devices --listen --force --help' -- "$current"))
    return
  fi
  case $previous in
      --components-path|--data-dir|--resources-path) COMPREPLY=($(compgen -d -- "$current")); return ;;
      --ca-file|--config|--password-file) COMPREPLY=($(compgen -f -- "$current")); return ;;
      --app-protocol) COMPREPLY=($(compgen -W 'http h2c grpc' -- "$current")); return ;;
      --log-level) COMPREPLY=($(compgen -W 'debug info warn error fatal' -- "$current")); return ;;
      --disable-init-endpoints) COMPREPLY=($(compgen -W 'config subscribe' -- "$current")); return ;;
      --mode) COMPREPLY=($(compgen -W 'standalone' -- "$current")); return ;;
      --allowed-origins|--app-channel-address|--app-health-check-path|--app-health-probe-interval|--app-health-probe-timeout|--app-health-threshold|--app-id|--app-max-concurrency|--app-port|--dapr-graceful-shutdown-seconds|--dapr-grpc-port|--dapr-http-port|--dapr-listen-addresses|--dapr-public-listen-address|--dapr-public-port|--devices|--for|--listen|--max-body-size|--metrics-listen-address|--metrics-port|--prefix|--rate|--read-buffer-size|--size|--threads|--upstream|--user) return ;;
  esac
  if [[ $COMP_CWORD -eq 1 ]]; then
    words='run demo init check status queue escape doctor reload version'
  else
    case ${COMP_WORDS[1]} in
      check|init) COMPREPLY=($(compgen -d -- "$current")); return ;;
      queue) words='ls show export retry purge drop' ;;
      escape) words='status enter leave pin report' ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o filenames -F _selvedge selvedge
