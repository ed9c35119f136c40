// nodemailer, as npm has it.
const fs = require('fs');
const nodemailer = require('nodemailer');

const e = process.env;
const tls = e.FEATURE === 'TLS' || e.FEATURE === 'AUTH';
const transport = nodemailer.createTransport({
    host: e.HOST,
    port: Number(e.PORT),
    name: 'node.test',
    secure: false,
    requireTLS: tls,
    ignoreTLS: !tls,
    tls: { ca: fs.readFileSync(e.CA), servername: 'localhost' },
    auth: e.FEATURE === 'AUTH' ? { user: e.AUTH_USER, pass: e.AUTH_PASSWORD } : undefined,
});
const dsn = e.FEATURE === 'DSN' ? { id: 'interop', return: 'headers', notify: 'success', recipient: e.SENDER } : undefined;
transport.sendMail({
    envelope: { from: e.SENDER, to: e.RECIPIENT, dsn },
    raw: fs.readFileSync(e.MESSAGE),
}).then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
