# Sourced by the scripts here: makes the checkout importable without an install, and names the Python to use.
# kernels/ is imported as vrlvr_kernels, so it gets a link of that name in a temporary folder.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
ln -s "$root/kernels" "$links/vrlvr_kernels"
export PYTHONPATH="$root:$links${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
