// Charts of what the tables say, drawn with uPlot.
(async () => {
  const charts = document.getElementById('charts');
  const reply = await fetch(charts.dataset.url);
  if (!reply.ok) return;
  const data = await reply.json();
  charts.hidden = false;
  const style = getComputedStyle(document.documentElement);
  const colour = name => style.getPropertyValue(name).trim();
  const hours = data.times.length > 1 && data.times[1] - data.times[0] < 86400;
  const when = seconds => new Date(seconds * 1000).toISOString().slice(hours ? 11 : 5, hours ? 16 : 10);
  const axis = { stroke: colour('--dim'), grid: { stroke: colour('--line'), width: 1 }, ticks: { stroke: colour('--line'), width: 1 }, font: '12px system-ui, sans-serif' };
  const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 2 });
  const money = value => value == null ? '' : '$' + (value >= 1 ? value.toFixed(2) : String(Number(value.toPrecision(3))));
  const bars = uPlot.paths.bars({ size: [0.7, 60] });
  const kinds = {
    tokens: { names: ['input', 'cached', 'output'], colours: ['--accent', '--good', '--bad'], text: value => value == null ? '' : short.format(value) },
    requests: { names: ['requests'], colours: ['--accent'], text: value => value == null ? '' : short.format(value) },
    cost: { names: ['cost'], colours: ['--accent'], text: money },
  };
  for (const place of charts.querySelectorAll('[data-chart]')) {
    const kind = kinds[place.dataset.chart];
    const single = kind.names.length === 1;
    const series = kind.names.map((name, index) => ({
      label: name, stroke: colour(kind.colours[index]), fill: colour(kind.colours[index]) + (single ? 'cc' : '22'), width: single ? 0 : 2,
      value: (_, value) => kind.text(value), ...(single && { paths: bars }), points: { show: data.times.length < 3 && !single },
    }));
    const options = {
      width: place.clientWidth, height: 230, scales: { x: { time: false }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [{ ...axis, values: (_, ticks) => ticks.map(when), space: 60 }, { ...axis, values: (_, ticks) => ticks.map(kind.text), size: 64 }],
      legend: { show: !single, live: false }, cursor: { y: false },
      series: [{ label: 'from', value: (_, value) => value == null ? '' : when(value) }, ...series],
    };
    const chart = new uPlot(options, [data.times, ...kind.names.map(name => data[name])], place);
    place.setAttribute('role', 'img');
    place.setAttribute('aria-label', `Chart of ${place.dataset.chart}; the table below says the same`);
    new ResizeObserver(() => chart.setSize({ width: place.clientWidth, height: 230 })).observe(place);
  }
})();
