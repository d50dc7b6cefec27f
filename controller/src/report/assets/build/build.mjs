// Bundles entry.js into ../echarts.js, and copies the licence texts beside it. The same versions give the same bytes.
import { readFileSync, writeFileSync } from 'node:fs';
import { build } from 'esbuild';

const read = (path) => readFileSync(new URL(`node_modules/${path}`, import.meta.url), 'utf8').replaceAll('\r\n', '\n').trim();
const version = (name) => JSON.parse(read(`${name}/package.json`)).version;
const notice = [
  `Apache ECharts ${version('echarts')}, custom build (see controller/src/report/assets/build). Licensed under the Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0`,
  read('echarts/NOTICE'),
  `With ZRender ${version('zrender')}:\n${read('zrender/LICENSE')}`,
  `With parts of d3.js:\n${read('echarts/licenses/LICENSE-d3')}`,
  `With tslib ${version('tslib')}:\n${read('tslib/LICENSE.txt')}`,
].join('\n\n');
if (notice.includes('*/') || notice.includes('</')) throw new Error('the notice would end its own comment');

const result = await build({
  absWorkingDir: new URL('.', import.meta.url).pathname,
  entryPoints: ['entry.js'],
  bundle: true,
  minify: true,
  format: 'iife',
  globalName: 'echarts',
  target: 'es2020',
  charset: 'ascii',
  legalComments: 'none',
  define: { 'process.env.NODE_ENV': '"production"' },
  write: false,
});
const code = result.outputFiles[0].text;
// A browser reads CR as LF, and the hash in the page's policy would not fit.
if (/\r/.test(code)) throw new Error('the bundle has carriage returns');
if (/<\/script|<!--/i.test(code)) throw new Error('the bundle would end the script element that holds it');
writeFileSync(new URL('../echarts.js', import.meta.url), `/*!\n${notice}\n*/\n${code}`);
writeFileSync(new URL('../LICENSE-echarts', import.meta.url), `${read('echarts/LICENSE')}\n`);
writeFileSync(new URL('../NOTICE-echarts', import.meta.url), `${notice}\n`);
console.log(`echarts.js: ${code.length} bytes`);
