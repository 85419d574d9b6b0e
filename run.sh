cd target/cuda; for f in it ops; do xz -dk $f.xz; chmod +x $f; done; cd ../..
mkdir -p /work/wt/cuda/crates/device-cuda; ln -s $PWD/fixtures /work/wt/cuda/fixtures; ln -s $PWD/crates/cli /work/wt/cuda/crates/cli
export BITNET_NVRTC=$(ls /usr/local/cuda-13.0/targets/x86_64-linux/lib/libnvrtc.so.13)
timeout 120 ./target/cuda/it --test-threads=2 --skip compile 2>&1 | cut -c1-300 | grep -v "^$" | tail -40
for a in "2b4t b1 n32 b1 b2 b8 b64 b256 p512 p2048" "8b b1 b8 p512" "0.7b b1"; do timeout 100 ./target/cuda/ops $a 2>&1 | cut -c1-300; done
export TMPDIR=/tmp
prof() { timeout 90 ncu --graph-profiling node --clock-control none --metrics gpu__time_duration.sum --csv --page raw --launch-skip $1 --launch-count $2 ./target/cuda/ops $3 > /tmp/p.csv 2>/tmp/p.err; python3 target/cuda/agg.py /tmp/p.csv $4; tail -1 /tmp/p.err; }
echo "== b1"; prof 470 600 "2b4t n1 b1" 16
echo "== b64"; prof 470 600 "2b4t n1 b64" 14
echo "== p2048"; prof 470 330 "2b4t p2048" 14
echo "== 8b"; prof 600 800 "8b n1 b1" 12
