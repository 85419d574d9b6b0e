import csv,sys,collections
rows=[]
hdr=None
for r in csv.reader(l for l in open(sys.argv[1],errors='replace') if l.startswith('"')):
    if r and r[0]=='ID': hdr=r; continue
    if hdr: rows.append(dict(zip(hdr,r)))
t=collections.defaultdict(list)
for r in rows:
    try: v=float(r['gpu__time_duration.sum'].replace(',',''))
    except Exception: continue
    t[(r['Kernel Name'].split('(')[0],r.get('Grid Size',''),r.get('Block Size',''))].append(v)
for k,v in sorted(t.items(),key=lambda kv:-sum(kv[1]))[:int(sys.argv[2])]:
    v2=sorted(v); print(f"{sum(v):12.0f} n={len(v):5d} med={v2[len(v)//2]:10.1f} {k[0]} {k[1]} {k[2]}")
