# Made by packaging/completions.py from `selvedge help`; change that, not this.
complete -c selvedge -f
complete -c selvedge -n __fish_use_subcommand -a run -d 'run with working defaults where no --resources-path is given, and a program beside it'
complete -c selvedge -n __fish_use_subcommand -a demo -d 'an outage, a kill and the books, in about a minute'
complete -c selvedge -n __fish_use_subcommand -a init -d 'write a commented folder of YAML, check it, say what comes next; more: selvedge init --help'
complete -c selvedge -n __fish_use_subcommand -a check -d 'check folders of YAML strictly, start nothing'
complete -c selvedge -n __fish_use_subcommand -a status -d 'what the node of this data directory is doing, as JSON'
complete -c selvedge -n __fish_use_subcommand -a queue -d 'what waits; what upstreams refused: show it, as JSON lines, try it again, drop it; drop what waits for an upstream that there is not any more'
complete -c selvedge -n __fish_use_subcommand -a escape -d 'the mode of the box: show it, close all links, open them, set it, past outages'
complete -c selvedge -n __fish_use_subcommand -a doctor -d 'examine the box, the upstreams and the settings: what was found and what to do'
complete -c selvedge -n __fish_use_subcommand -a reload -d 'read the folders of YAML again: what can change live does, the rest is named; another level for the log'
complete -c selvedge -n __fish_use_subcommand -a version -d ''
complete -c selvedge -n '__fish_seen_subcommand_from init' -a '(__fish_complete_directories)'
complete -c selvedge -n '__fish_seen_subcommand_from check' -a '(__fish_complete_directories)'
complete -c selvedge -n '__fish_seen_subcommand_from queue' -a 'ls show export retry purge drop'
complete -c selvedge -n '__fish_seen_subcommand_from escape' -a 'status enter leave pin report'
complete -c selvedge -l app-id -x
complete -c selvedge -l app-port -x
complete -c selvedge -l app-protocol -x -a 'http h2c grpc'
complete -c selvedge -l app-channel-address -x
complete -c selvedge -l app-max-concurrency -x
complete -c selvedge -l app-health-check-path -x
complete -c selvedge -l app-health-probe-interval -x
complete -c selvedge -l app-health-probe-timeout -x
complete -c selvedge -l app-health-threshold -x
complete -c selvedge -l enable-app-health-check
complete -c selvedge -l dapr-http-port -x
complete -c selvedge -l dapr-grpc-port -x
complete -c selvedge -l dapr-listen-addresses -x
complete -c selvedge -l dapr-public-port -x
complete -c selvedge -l dapr-public-listen-address -x
complete -c selvedge -l dapr-graceful-shutdown-seconds -x
complete -c selvedge -l metrics-port -x
complete -c selvedge -l metrics-listen-address -x
complete -c selvedge -l enable-metrics
complete -c selvedge -l resources-path -x -a '(__fish_complete_directories)'
complete -c selvedge -l components-path -x -a '(__fish_complete_directories)'
complete -c selvedge -l config -r -F
complete -c selvedge -l max-body-size -x
complete -c selvedge -l read-buffer-size -x
complete -c selvedge -l allowed-origins -x
complete -c selvedge -l enable-api-logging
complete -c selvedge -l disable-init-endpoints -x -a 'config subscribe'
complete -c selvedge -l mode -x -a 'standalone'
complete -c selvedge -l log-level -x -a 'debug info warn error fatal'
complete -c selvedge -l log-as-json
complete -c selvedge -l version
complete -c selvedge -l build-info
complete -c selvedge -l data-dir -x -a '(__fish_complete_directories)'
complete -c selvedge -l threads -x
complete -c selvedge -l upstream -x
complete -c selvedge -l for -x
complete -c selvedge -l json
complete -c selvedge -l rate -x
complete -c selvedge -l size -x
complete -c selvedge -l user -x
complete -c selvedge -l password-file -r -F
complete -c selvedge -l ca-file -r -F
complete -c selvedge -l prefix -x
complete -c selvedge -l devices -x
complete -c selvedge -l listen -x
complete -c selvedge -l force
complete -c selvedge -l help
