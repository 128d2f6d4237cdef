"""The gateway: public listener and data plane. No database, no scheduler, no pages; never root, never a user's file.

It is started by ``python -m portico.cli.process gateway`` with PORTICO_FDS (``listen-portal=5,listen-apps=6``) and
PORTICO_SETTINGS, or within a program by ``process.serve(config, listeners, tls)``. It needs ``portal.sock`` and
``routes.sock`` in ``run_dir``, and waits for both.

    fields, head, body      HTTP/1.x without I/O: parse, judge
    forward                 which headers go on, rendered
    websocket, filters      RFC 6455 frames, and what a viewer may say, without I/O
    plane, end, flow        the event loop; one end of a connection, plain or TLS; bulk with back-pressure
    upstream, exchange      connections to portal and apps; one request and its answer
    stream, tunnel          an app's bytes as a WebSocket; a WebSocket of the app's own
    routes                  asks the portal, keeps its decisions, cuts
    client, server          a browser's connection; all of them
    listening, limits       what a listener serves; security limits
"""
