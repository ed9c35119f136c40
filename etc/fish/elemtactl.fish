# Completion of elemtactl in fish. The command itself knows what may come next.
function __elemtactl_complete
    set -l words (commandline -opc)
    command $words[1] __complete $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c elemtactl -f -a '(__elemtactl_complete)'
for option in config socket file message
    complete -c elemtactl -l $option -r -F
end
