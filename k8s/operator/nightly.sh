# One night: create the DaskJob SWEEP-YYYYMMDD, wait for its end, and end with the exit code of its sweep.
#
# A DaskJob of that name that runs is waited for, one that succeeded is enough, and one that failed is replaced: its sweep
# finds in the store what the first attempt published, and measures the rest.
set -eu

job="$SWEEP-$(date -u +%Y%m%d)"
folder=$(dirname "$0")
pause=${PAUSE_SECONDS:-30}

# Prints none, runs, succeeded or failed. The operator does not notice when the pod of the sweep goes with its node.
state() {
    status=$(kubectl get daskjob "$job" --ignore-not-found --output 'jsonpath={.kind}{.status.jobStatus}') || return
    case $status in
    '') echo none ;;
    DaskJobSuccessful) echo succeeded ;;
    DaskJobFailed) echo failed ;;
    DaskJobRunning)
        runner=$(kubectl get pod "$job-runner" --ignore-not-found --output name) || return
        if [ "$runner" ]; then echo runs; else echo failed; fi
        ;;
    *) echo runs ;;
    esac
}

create() {
    image=$(kubectl get pod "$POD_NAME" --output 'jsonpath={.spec.containers[0].image}')
    sed "s|tonight|$job|g; s|image: .*|image: $image|" "$folder/daskjob.yaml" | kubectl create --filename -
}

remove() {
    kubectl delete daskjob "$job" --wait=false
    until gone; do sleep "$pause"; done
}

# The next attempt uses the same names, and the operator takes what still has them for its own.
gone() {
    left=$(
        kubectl get daskjob "$job" --ignore-not-found --output name
        kubectl get daskclusters,deployments,services,pods --selector "dask.org/cluster-name=$job" --output name
    ) && [ -z "$left" ]
}

# DaskJobs have no time to live: those of earlier nights, with their logs, leave when a successor comes.
tidy() {
    ended=$(
        kubectl get daskjobs --selector app.kubernetes.io/name=diffai-dist \
            --output 'jsonpath={range .items[*]}{.metadata.name}={.status.jobStatus}{"\n"}{end}' |
            sed -nE "s/^($SWEEP-[0-9]{8})=(Successful|Failed)$/\1/p"
    )
    for name in $ended; do
        kubectl delete daskjob "$name" --wait=false
    done
}

found=$(state)
if [ "$found" = failed ]; then
    remove
    found=none
fi
if [ "$found" = none ]; then
    tidy
    create
    found=runs
fi
while [ "$found" = runs ]; do
    sleep "$pause"
    found=$(state) || found=runs # the API server may be away for a moment
done
echo "$job: $found"
[ "$found" = succeeded ] && exit
code=$(kubectl get pod "$job-runner" --ignore-not-found \
    --output 'jsonpath={.status.containerStatuses[0].state.terminated.exitCode}')
exit "${code:-4}" # 4: the pod is gone, with the cluster
